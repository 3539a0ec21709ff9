//! `registries.conf`: the operator's registries, in Image Updater's format.
//!
//! YAML goes in, and for each repository a `Route` comes out: the endpoint to ask, the path to ask for, the credential to use. All keys
//! of Image Updater 1.3 are read, unknown ones are errors, and there is one key more:
//!
//! ```yaml
//! registries:
//!   - name: Harbor
//!     prefix: harbor.example.com          # image names that begin so; may go on with path parts: harbor.example.com/proxy
//!     api_url: https://harbor.example.com
//!     credentials: env:HARBOR             # env:NAME, ext:/path, secret:ns/name#field, pullsecret:ns/name
//!     credsexpire: 6h                     # default: until the registry refuses it
//!     limit: 20                           # requests a second; 0 is no limit; default 100, Docker Hub 10
//!     realms: ["https://sso.example.com"] # ours: token services on other hosts that may have the credential
//!     tagsortmode: latest-first           # tags are listed in order of time; or latest-last; default: none
//!     # insecure, ca_file, ca_data, defaultns, default; ping is accepted and has no effect
//! ```
//!
//! Three habits of Image Updater are not kept: an entry without `limit` is limited, as its manual says (its code doesn't), an entry
//! for `docker.io` also applies to images without a registry when it doesn't say `default: true`, and `tagsortmode` takes nothing from
//! the strategy `digest`, which has no digest there.

mod raw;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;

use super::credential::Source;
use crate::image::{DOCKER_HUB, Repository};

/// Where Docker Hub answers.
const HUB_API: &str = "https://registry-1.docker.io";

/// Where Argo CD's certificates (`argocd-tls-certs-cm`) are mounted, one file for each host. Image Updater looks here too.
const CERTIFICATES: &str = "/app/config/tls";

/// Why `registries.conf` could not be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("could not read `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        source: Arc<std::io::Error>,
    },
    /// It is not the YAML that it should be. The reason names the key and, if the parser knows them, line and column.
    #[error("`{path}` is not a `registries.conf`: {reason}")]
    Syntax { path: PathBuf, reason: String },
    /// An entry says something impossible.
    #[error("`{path}`: registry `{name}`: {reason}")]
    Entry { path: PathBuf, name: String, reason: String },
}

/// The operator's registries. [`RegistriesConfig::default`] declares none: Docker Hub and public hosts are asked anonymously.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistriesConfig {
    /// In the order of the file.
    entries: Vec<Arc<Endpoint>>,
    /// Where images without a registry are.
    unqualified: Arc<Endpoint>,
}

/// A registry to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub(super) name: String,
    /// Image names that begin so, in lower case: `host[:port][/path]`.
    pub(super) prefix: String,
    /// Without a slash at its end.
    pub(super) api_url: Url,
    pub(super) credentials: Option<Source>,
    pub(super) credentials_expire: Option<Duration>,
    /// Skip TLS verification.
    pub(super) insecure: bool,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) ca_data: Option<String>,
    pub(super) default_namespace: Option<String>,
    /// [`None`]: the order of its listings says nothing.
    pub(super) tag_order: Option<TagOrder>,
    /// Requests a second; [`None`] is no limit.
    pub(super) limit: Option<NonZeroU32>,
    pub(super) realms: Vec<Url>,
    /// Did the operator write this entry? If not, it was inferred from an image's name.
    pub(super) declared: bool,
    default: bool,
}

/// In which order of time a registry lists its tags: `tagsortmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TagOrder {
    LatestFirst,
    LatestLast,
}

impl TagOrder {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::LatestFirst => "latest-first",
            Self::LatestLast => "latest-last",
        }
    }
}

impl Endpoint {
    /// The endpoint of a host that nobody declared.
    fn inferred(host: &str) -> Option<Self> {
        let hub = host == DOCKER_HUB;
        let api_url = if hub { Url::parse(HUB_API) } else { Url::parse(&format!("https://{host}")) };
        Some(Self {
            name: host.to_owned(),
            prefix: host.to_owned(),
            api_url: api_url.ok()?,
            credentials: None,
            credentials_expire: None,
            insecure: false,
            ca_file: None,
            ca_data: None,
            default_namespace: None,
            tag_order: None,
            limit: default_limit(hub),
            realms: Vec::new(),
            declared: false,
            default: false,
        })
    }

    /// The host that is asked, with its port if that is not the scheme's own.
    pub(super) fn authority(&self) -> String {
        authority(&self.api_url)
    }

    pub(super) fn is_hub(&self) -> bool {
        self.api_url.host_str() == Some("registry-1.docker.io")
    }

    /// The file with this registry's authority: `ca_file`, or Argo CD's certificate of this host where one is mounted.
    pub(super) fn certificates(&self) -> Option<PathBuf> {
        let mounted = || Some(Path::new(CERTIFICATES).join(self.api_url.host_str()?)).filter(|path| path.is_file());
        self.ca_file.clone().or_else(mounted)
    }
}

/// `host` or `host:port` of a URL.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Requests a second where `limit` says nothing. Docker Hub counts all requests of an address, and blocks it for hours.
fn default_limit(hub: bool) -> Option<NonZeroU32> {
    NonZeroU32::new(if hub { 10 } else { 100 })
}

/// Where a repository's questions go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub endpoint: Arc<Endpoint>,
    /// The repository's path at the endpoint.
    pub path: String,
    /// Is this another place than the repository's name says? Happens to images without a registry, whose canonical name begins with
    /// `docker.io`, when another registry is the default.
    pub detour: bool,
}

impl RegistriesConfig {
    /// Reads a file. A caller who wants to follow its changes reads it again and gives the outcome to
    /// [`Client::replace`](super::Client::replace).
    ///
    /// # Errors
    ///
    /// [`ConfigError`], with the path, and line and column where the parser knows them.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source: Arc::new(source) })?;
        Self::parse(&text, path)
    }

    /// Reads the text of a file; `path` is for messages.
    ///
    /// # Errors
    ///
    /// As [`RegistriesConfig::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let syntax = |error: serde_yaml::Error| ConfigError::Syntax { path: path.to_owned(), reason: error.to_string() };
        let file: raw::File = crate::yaml::from_str::<Option<raw::File>>(text).map_err(syntax)?.unwrap_or_default();
        let mut entries: Vec<Arc<Endpoint>> = Vec::with_capacity(file.registries.len());
        for entry in file.registries {
            let name = entry.name.clone();
            let fail = |reason: String| ConfigError::Entry { path: path.to_owned(), name: name.clone(), reason };
            let endpoint = entry.check().map_err(fail)?;
            if entries.iter().any(|other| other.prefix == endpoint.prefix) {
                return Err(fail(format!("another entry has the same prefix: `{}`", endpoint.prefix)));
            }
            if endpoint.default && entries.iter().any(|other| other.default) {
                return Err(fail("another entry is the default already".to_owned()));
            }
            entries.push(Arc::new(endpoint));
        }
        Ok(Self::of(entries))
    }

    fn of(entries: Vec<Arc<Endpoint>>) -> Self {
        let find = |wanted: &dyn Fn(&Endpoint) -> bool| entries.iter().find(|entry| wanted(entry)).cloned();
        let unqualified = find(&|entry| entry.default)
            .or_else(|| find(&|entry| entry.prefix.is_empty()))
            .or_else(|| find(&|entry| entry.prefix == DOCKER_HUB))
            .unwrap_or_else(|| Arc::new(Endpoint::inferred(DOCKER_HUB).expect("Docker Hub's address is a constant")));
        Self { entries, unqualified }
    }

    /// Finds where a repository's questions go: the default registry if its name has none, the entry with exactly its host as prefix,
    /// the entry with the longest prefix that ends at a path part's end, or the host itself over https. [`None`] if that is no host.
    pub(super) fn route(&self, repository: &Repository) -> Option<Route> {
        if repository.is_unqualified() {
            let endpoint = Arc::clone(&self.unqualified);
            let hub = endpoint.prefix == DOCKER_HUB || endpoint.is_hub();
            // What the user wrote: `nginx` is `library/nginx` at Docker Hub alone.
            let path = if hub { repository.path() } else { repository.text() };
            return Some(Route { path: below(&endpoint, path), detour: !hub, endpoint });
        }
        let name = format!("{}/{}", repository.registry(), repository.path());
        let host = self.entries.iter().find(|entry| entry.prefix == repository.registry());
        let longest = || {
            let fits = |entry: &&Arc<Endpoint>| starts_with_parts(&name, &entry.prefix);
            self.entries.iter().filter(fits).max_by_key(|entry| entry.prefix.len())
        };
        let endpoint = match host.into_iter().chain(longest()).max_by_key(|entry| entry.prefix.len()) {
            Some(entry) => Arc::clone(entry),
            None => Arc::new(Endpoint::inferred(repository.registry())?),
        };
        Some(Route { path: below(&endpoint, repository.path()), detour: false, endpoint })
    }

    /// Credentials that cannot work, as far as that can be told without asking: one text for each.
    pub fn credential_problems(&self) -> Vec<String> {
        let problem = |entry: &Arc<Endpoint>| {
            let source = entry.credentials.as_ref()?;
            Some(format!("registry `{}`: the credential `{source}` cannot be used: {}", entry.name, source.problem()?))
        };
        self.entries.iter().filter_map(problem).collect()
    }

    /// The variables that hold credentials, which no child needs to see.
    pub(super) fn credential_variables(&self) -> Vec<String> {
        let variable = |entry: &Arc<Endpoint>| match &entry.credentials {
            Some(Source::Variable(name)) => Some(name.clone()),
            _ => None,
        };
        self.entries.iter().filter_map(variable).collect()
    }

    /// Is this endpoint what a repository would be routed to now? Inferred ones always are.
    pub(super) fn knows(&self, endpoint: &Arc<Endpoint>) -> bool {
        !endpoint.declared || self.entries.contains(endpoint)
    }
}

impl Default for RegistriesConfig {
    fn default() -> Self {
        Self::of(Vec::new())
    }
}

/// Adds the default namespace to a path of one part.
fn below(endpoint: &Endpoint, path: &str) -> String {
    match &endpoint.default_namespace {
        Some(namespace) if !path.contains('/') => format!("{namespace}/{path}"),
        _ => path.to_owned(),
    }
}

/// Does a name begin with these path parts? `harbor.x/proxy` begins `harbor.x/proxy/a` but not `harbor.x/proxy2/a`.
pub(super) fn starts_with_parts(name: &str, prefix: &str) -> bool {
    !prefix.is_empty() && name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
