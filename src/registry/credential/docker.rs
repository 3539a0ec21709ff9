//! Docker's `config.json`: stored logins, and the helpers that keep them elsewhere.
//!
//! Read from the directory that `DOCKER_CONFIG` names, else `~/.docker`; again whenever the file changes. Keys are matched as
//! [Docker] means them: `https://index.docker.io/v1/` is Docker Hub, a scheme and an API version don't count, and a key may go on with
//! path parts ([containers-auth.json]), of which the longest wins. A host fits exactly or not at all, port included: the password of
//! `ghcr.io` is never sent to `ghcr.i`.
//!
//! [Docker]: https://github.com/docker/cli/blob/v27.3.1/cli/config/configfile/file.go
//! [containers-auth.json]: https://github.com/containers/image/blob/v5.32.2/docs/containers-auth.json.5.md

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::Deserialize;

use super::helper::{Helpers, successful};
use super::{Credential, Secret};
use crate::image::DOCKER_HUB;
use crate::registry::config::starts_with_parts;
use crate::registry::error::{Because, Cause};

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// How Docker names its own registry.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// The file, remembered until it changes.
#[derive(Debug)]
pub struct DockerConfig {
    path: Option<PathBuf>,
    read: Mutex<Option<(Stamp, Outcome)>>,
}

/// What reading it gave: the error is kept too, until the file changes.
type Outcome = Result<Arc<Logins>, String>;

/// Tells one state of a file from another.
type Stamp = Option<(SystemTime, u64)>;

impl DockerConfig {
    pub fn new(path: Option<PathBuf>) -> Self {
        Self { path, read: Mutex::default() }
    }

    /// Where docker keeps its file.
    pub fn default_path() -> Option<PathBuf> {
        let directory = std::env::var_os("DOCKER_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        let home = || Some(Path::new(&std::env::var_os("HOME").filter(|path| !path.is_empty())?).join(".docker"));
        Some(directory.or_else(home)?.join("config.json"))
    }

    /// Which of its entries is for this host and path, if one is?
    ///
    /// # Errors
    ///
    /// A file that is there and cannot be read or understood.
    pub fn find(&self, host: &str, path: &str) -> Result<Option<Login>, Cause> {
        Ok(self.logins()?.find(host, path))
    }

    fn logins(&self) -> Result<Arc<Logins>, Cause> {
        let Some(path) = &self.path else { return Ok(Arc::default()) };
        let stamp = std::fs::metadata(path).ok().map(|data| (data.modified().unwrap_or(SystemTime::UNIX_EPOCH), data.len()));
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = read.as_ref().filter(|(then, _)| *then == stamp).map(|(_, outcome)| outcome.clone());
        let outcome = fresh.unwrap_or_else(|| {
            let outcome = Logins::load(path, stamp).map(Arc::new);
            *read = Some((stamp, outcome.clone()));
            outcome
        });
        outcome.map_err(Because::cause)
    }
}

/// An entry of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// Stored in the file, under this key.
    Stored { key: String, credential: Credential },
    /// Kept by `docker-credential-<helper>`, for this server.
    Helper { helper: String, server: String },
}

impl Login {
    /// Its name in messages and cache keys.
    pub fn identity(&self) -> String {
        match self {
            Self::Stored { key, .. } => format!("docker-config:{key}"),
            Self::Helper { helper, server } => format!("docker-helper:{helper}:{server}"),
        }
    }

    /// The credential; [`None`] if the helper has none for this server.
    pub async fn read(&self, helpers: &Helpers) -> Result<Option<Credential>, Cause> {
        match self {
            Self::Stored { credential, .. } => Ok(Some(credential.clone())),
            Self::Helper { helper, server } => ask(helper, server, helpers).await,
        }
    }
}

/// What a helper prints when it has no login for the server.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// Asks a helper, in the [protocol] of docker's helpers.
///
/// [protocol]: https://github.com/docker/docker-credential-helpers#development
async fn ask(helper: &str, server: &str, helpers: &Helpers) -> Result<Option<Credential>, Cause> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let program = OsString::from(format!("docker-credential-{helper}"));
    let (status, output) = helpers.run(&program, &["get"], server.as_bytes()).await?;
    // Any other failure is an error: an anonymous request in place of the operator's would be answered as if there were no such image.
    if !status.success() && output.trim_ascii() == NOT_FOUND.as_bytes() {
        return Ok(None);
    }
    let output = successful((status, output))?;
    let answer: Answer =
        serde_json::from_slice(&output).map_err(|_| Because::cause(format!("`docker-credential-{helper}` printed no login")))?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    // https://github.com/docker/cli/blob/v27.3.1/cli/config/credentials/native_store.go#L12
    if answer.username == "<token>" {
        return Ok(Some(Credential::IdentityToken(Secret::new(answer.secret))));
    }
    Ok(Some(Credential::password(&answer.username, &answer.secret)))
}

/// The file's content.
#[derive(Debug, Default)]
struct Logins {
    /// By normal form of the key.
    stored: BTreeMap<String, (String, Credential)>,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
}

impl Auth {
    /// [`None`] for an entry without content, which says that a helper has it.
    fn credential(&self) -> Result<Option<Credential>, &'static str> {
        use base64::Engine as _;
        use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::IdentityToken(Secret::new(self.identitytoken.as_str()))));
        }
        if !self.auth.is_empty() {
            let bytes = STANDARD
                .decode(&self.auth)
                .or_else(|_| STANDARD_NO_PAD.decode(&self.auth))
                .map_err(|_| "`auth` is not base64")?;
            // Docker pads what it encodes with zeros.
            let text = String::from_utf8(bytes).map_err(|_| "`auth` is not text")?;
            return Credential::read(text.trim_end_matches('\0')).map(Some).ok_or("`auth` does not hold `user:password`");
        }
        if !self.username.is_empty() && !self.password.is_empty() {
            return Ok(Some(Credential::password(&self.username, &self.password)));
        }
        Ok(None)
    }
}

impl Logins {
    fn load(path: &Path, stamp: Stamp) -> Result<Self, String> {
        let Some((_, size)) = stamp else { return Ok(Self::default()) };
        if size > MAX_FILE {
            return Err(format!("`{}` is larger than {} MiB", path.display(), MAX_FILE >> 20));
        }
        let text = std::fs::read(path).map_err(|error| format!("could not read `{}`: {error}", path.display()))?;
        Self::parse(&text).map_err(|reason| format!("`{}` is not docker's configuration: {reason}", path.display()))
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        // The parser's own message may quote the value it stumbled over, which can be a password.
        let file: File =
            serde_json::from_slice(text).map_err(|error| format!("line {}, column {}", error.line(), error.column()))?;
        let mut stored = BTreeMap::new();
        for (key, auth) in &file.auths {
            match auth.credential() {
                Ok(Some(credential)) => {
                    stored.entry(normal(key)).or_insert_with(|| (key.clone(), credential));
                }
                Ok(None) => {}
                Err(reason) => return Err(format!("{reason} in the entry of `{}`", crate::image::printable(key))),
            }
        }
        let helper = |name: &str| {
            let legal = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            if legal { Ok(name.to_owned()) } else { Err(format!("`{}` is not a helper's name", crate::image::printable(name))) }
        };
        let helpers =
            file.cred_helpers.iter().map(|(host, name)| Ok((normal(host), helper(name)?))).collect::<Result<_, String>>()?;
        let store = Some(file.creds_store).filter(|name| !name.is_empty()).map(|name| helper(&name)).transpose()?;
        Ok(Self { stored, helpers, store })
    }

    /// A host's own helper goes before the stored login of the longest key that fits, and that before the helper for all hosts.
    fn find(&self, host: &str, path: &str) -> Option<Login> {
        let host = if host == "registry-1.docker.io" { DOCKER_HUB } else { host };
        let server = || if host == DOCKER_HUB { HUB_KEY.to_owned() } else { host.to_owned() };
        if let Some(helper) = self.helpers.get(host) {
            return Some(Login::Helper { helper: helper.clone(), server: server() });
        }
        let name = format!("{host}/{path}");
        let longest = self.stored.iter().filter(|(key, _)| starts_with_parts(&name, key)).max_by_key(|(key, _)| key.len());
        if let Some((_, (key, credential))) = longest {
            return Some(Login::Stored { key: key.clone(), credential: credential.clone() });
        }
        self.store.as_ref().map(|helper| Login::Helper { helper: helper.clone(), server: server() })
    }
}

/// A key without scheme and API version, Docker Hub's names folded.
fn normal(key: &str) -> String {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key).trim_end_matches('/');
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.to_ascii_lowercase();
    let host = match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => DOCKER_HUB,
        host => host,
    };
    match path {
        "" | "v1" | "v2" => host.to_owned(),
        path => format!("{host}/{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logins(text: &str) -> Logins {
        Logins::parse(text.as_bytes()).expect(text)
    }

    /// base64 of `alice:s3cret`.
    const ALICE: &str = "YWxpY2U6czNjcmV0";

    #[test]
    fn keys_are_matched_as_docker_matches_them() {
        let entry = |key: &str| logins(&format!(r#"{{"auths":{{"{key}":{{"auth":"{ALICE}"}}}}}}"#));
        for (key, host, path) in [
            ("https://index.docker.io/v1/", "registry-1.docker.io", "library/nginx"),
            ("docker.io", "registry-1.docker.io", "acme/web"),
            ("ghcr.io", "ghcr.io", "acme/web"),
            ("https://ghcr.io", "ghcr.io", "acme/web"),
            ("https://ghcr.io/v2/", "ghcr.io", "acme/web"),
            ("GHCR.io", "ghcr.io", "acme/web"),
            ("ghcr.io/acme", "ghcr.io", "acme/web"),
            ("ghcr.io/acme/web", "ghcr.io", "acme/web"),
            ("reg.x:5000", "reg.x:5000", "a"),
        ] {
            assert!(entry(key).find(host, path).is_some(), "{key} {host}/{path}");
        }
        for (key, host, path) in [
            ("ghcr.io", "ghcr.i", "acme/web"),
            ("ghcr.i", "ghcr.io", "acme/web"),
            ("ghcr.io", "ghcr.io:8443", "acme/web"),
            ("ghcr.io/acme", "ghcr.io", "acme2/web"),
            ("reg.x:5000", "reg.x", "a"),
            ("reg.x", "reg.x:5000", "a"),
            ("index.docker.io", "index.docker.io.evil.example", "a"),
        ] {
            assert_eq!(entry(key).find(host, path), None, "{key} {host}/{path}");
        }
    }

    #[test]
    fn the_longest_key_wins() {
        let logins = logins(
            r#"{"auths":{
                "ghcr.io":{"username":"host","password":"x"},
                "ghcr.io/acme":{"username":"team","password":"x"},
                "ghcr.io/acme/web":{"username":"image","password":"x"}}}"#,
        );
        for (path, user) in [("acme/web", "image"), ("acme/web2", "team"), ("acme/api", "team"), ("other/web", "host")] {
            let Some(Login::Stored { credential, .. }) = logins.find("ghcr.io", path) else { panic!("{path}") };
            assert_eq!(credential, Credential::password(user, "x"), "{path}");
        }
    }

    #[test]
    fn entries_are_read_in_all_their_forms() {
        let logins = logins(&format!(
            r#"{{"auths":{{"a.x":{{"auth":"{ALICE}"}},"b.x":{{"auth":"{ALICE}","identitytoken":"t"}},"c.x":{{}},"d.x":{{"auth":"YWxpY2U6czNjcmV0AAA="}}}},
                "credHelpers":{{"e.x":"ecr-login"}},"credsStore":"desktop","HttpHeaders":{{}}}}"#
        ));
        let stored = |host| match logins.find(host, "r") {
            Some(Login::Stored { credential, .. }) => Some(credential),
            _ => None,
        };
        assert_eq!(stored("a.x"), Some(Credential::password("alice", "s3cret")));
        assert_eq!(stored("b.x"), Some(Credential::IdentityToken(Secret::new("t"))));
        assert_eq!(stored("d.x"), Some(Credential::password("alice", "s3cret")));
        for (host, identity) in [
            ("c.x", "docker-helper:desktop:c.x"),
            ("e.x", "docker-helper:ecr-login:e.x"),
            ("registry-1.docker.io", "docker-helper:desktop:https://index.docker.io/v1/"),
        ] {
            assert_eq!(logins.find(host, "r").map(|login| login.identity()).as_deref(), Some(identity));
        }
    }

    #[test]
    fn faults_do_not_show_what_they_are_about() {
        for text in [
            r#"{"auths":{"a.x":{"auth":"s3cret!"}}}"#,
            r#"{"auths":{"a.x":{"password":["s3cret"]}}}"#,
            r#"{"auths":"s3cret"}"#,
            "s3cret",
            r#"{"credsStore":"../x"}"#,
        ] {
            let error = Logins::parse(text.as_bytes()).expect_err(text);
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.json");
        let config = DockerConfig::new(Some(path.clone()));
        assert_eq!(config.find("a.x", "r").expect("no file"), None);
        std::fs::write(&path, format!(r#"{{"auths":{{"a.x":{{"auth":"{ALICE}"}}}}}}"#)).expect("written");
        assert!(config.find("a.x", "r").expect("a file").is_some());
        std::fs::write(&path, "{").expect("written");
        assert!(config.find("a.x", "r").expect_err("damaged").to_string().contains("config.json"));
    }
}
