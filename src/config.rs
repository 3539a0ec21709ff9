//! What the operator sets: flags, environment (`PINION_*`) and a file become one checked [`Config`].
//!
//! A flag wins over its variable, the variable over the file, the file over the default. The file is YAML with the flags' names
//! (`tags-ttl: 2m`); an unknown key is an error.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use crate::egress::fetch::Fetcher;
use crate::egress::{HostPattern, Policy};
use crate::image::Platform;
use crate::manifest::ImagePath;
use crate::process::Runner;
use crate::process::sandbox::{Level, Mode, Sandboxes};
use crate::registry::{Client, Limits, RegistriesConfig};
use crate::render::Tools;
use crate::render::charts::Charts;
use crate::telemetry::Requests;

/// Where Image Updater keeps its `registries.conf`: read if it is there.
const REGISTRIES_CONF: &str = "/app/config/registries.conf";

/// Settings as they are written. Every field is optional, so that sources can be laid over one another.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(next_help_heading = "Operator settings (also as PINION_… variables, or in a file)")]
pub struct Raw {
    /// A YAML file with these settings
    #[arg(long, env = "PINION_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Image Updater's registries.conf [default: /app/config/registries.conf if it exists]
    #[arg(long, env = "PINION_REGISTRIES_CONF", value_name = "FILE")]
    pub registries_conf: Option<PathBuf>,

    /// Directory that keeps the last known good pins [default: ~/.local/state/pinion]
    #[arg(long, env = "PINION_STORE", value_name = "DIR")]
    pub store: Option<PathBuf>,

    /// Bytes that the store may have on disk; then those who store most lose what they used longest ago [default: 512 MiB]
    #[arg(long, env = "PINION_STORE_BYTES", value_name = "BYTES")]
    pub store_bytes: Option<u64>,

    /// Bytes of tags, metadata and pins in memory, shared fairly by AppProjects [default: 128 MiB]
    #[arg(long, env = "PINION_CACHE_BYTES", value_name = "BYTES")]
    pub cache_bytes: Option<u64>,

    /// Socket on which `pinion serve` answers `pinion generate`, not in the plugin directory [default: pins.sock in the store]
    #[arg(long, env = "PINION_PINS_SOCKET", value_name = "FILE")]
    pub pins_socket: Option<PathBuf>,

    /// Hosts of registries that may be asked, such as `ghcr.io` or `*.example.com` [default: any public name]
    #[arg(long, env = "PINION_ALLOW_REGISTRIES", value_name = "HOST", value_delimiter = ',')]
    pub allow_registries: Option<Vec<String>>,

    /// What may be connected to, as a block of the file: `egress: {hosts: […], cidrs: […], ports: […]}`
    #[arg(skip)]
    pub egress: Option<RawEgress>,

    /// Hosts that may be connected to, such as `git.example.com`, `charts.internal:8443` or `*.example.com` [default: any public name]
    ///
    /// Counts for registries, chart repositories, remote value files, and what Kustomize and Git fetch. A host without a wildcard may have
    /// any address. Registries in registries.conf need not be repeated.
    #[arg(long, env = "PINION_EGRESS_HOSTS", value_name = "HOST", value_delimiter = ',')]
    #[serde(skip)]
    pub egress_hosts: Option<Vec<String>>,

    /// Addresses that may be connected to although they are not public, such as `10.1.0.0/16` [default: none]
    #[arg(long, env = "PINION_EGRESS_CIDRS", value_name = "CIDR", value_delimiter = ',')]
    #[serde(skip)]
    pub egress_cidrs: Option<Vec<String>>,

    /// Ports that may be connected to, such as `443` or `8000-8999` [default: all]
    #[arg(long, env = "PINION_EGRESS_PORTS", value_name = "PORTS", value_delimiter = ',')]
    #[serde(skip)]
    pub egress_ports: Option<Vec<String>>,

    /// Let applications name `env:` and `ext:` credentials, as Image Updater does
    #[arg(long, env = "PINION_ALLOW_APPLICATION_CREDENTIALS", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub allow_application_credentials: Option<bool>,

    /// How long a list of tags, and a tag followed by digest, is fresh [default: 60s]
    #[arg(long, env = "PINION_TAGS_TTL", value_name = "DURATION")]
    pub tags_ttl: Option<String>,

    /// How long the digest of a tag is fresh that is one of many candidates for newest-build [default: 1h]
    #[arg(long, env = "PINION_DIGESTS_TTL", value_name = "DURATION")]
    pub digests_ttl: Option<String>,

    /// Longest time for all registry lookups of a render; then the last known good pin answers [default: 30s]
    #[arg(long, env = "PINION_LOOKUP_TIMEOUT", value_name = "DURATION")]
    pub lookup_timeout: Option<String>,

    /// Platforms that newest-build looks at, where a policy names none [default: linux on this processor]
    #[arg(long, env = "PINION_PLATFORMS", value_name = "OS/ARCH", value_delimiter = ',')]
    pub platforms: Option<Vec<String>>,

    /// Further places of images in manifests, such as `Prometheus:spec.image`
    #[arg(long, env = "PINION_IMAGE_PATHS", value_name = "KIND:PATH", value_delimiter = ',')]
    pub image_paths: Option<Vec<String>>,

    /// The Helm program [default: helm]
    #[arg(long, env = "PINION_HELM", value_name = "PROGRAM")]
    pub helm: Option<PathBuf>,

    /// The Kustomize program [default: kustomize]
    #[arg(long, env = "PINION_KUSTOMIZE", value_name = "PROGRAM")]
    pub kustomize: Option<PathBuf>,

    /// Options for `kustomize build`, split as a shell does [default: none]
    ///
    /// Whatever is set, Kustomize and the programs that it runs open nothing outside the checkout but programs, libraries and public files
    /// of the system, and have no network but what `egress` permits, as far as the kernel keeps the sandbox.
    #[arg(long, env = "PINION_KUSTOMIZE_BUILD_OPTIONS", value_name = "OPTIONS", allow_hyphen_values = true)]
    pub kustomize_build_options: Option<String>,

    /// Schemes of value files that may be fetched: `https`, `http` [default: none]
    #[arg(long, env = "PINION_VALUE_FILE_SCHEMES", value_name = "SCHEME", value_delimiter = ',')]
    pub value_file_schemes: Option<Vec<String>>,

    /// Longest time of one Helm or Kustomize process [default: 90s]
    #[arg(long, env = "PINION_RENDER_TIMEOUT", value_name = "DURATION")]
    pub render_timeout: Option<String>,

    /// Longest output of one Helm or Kustomize process, in bytes [default: 100 MiB]
    #[arg(long, env = "PINION_MAX_OUTPUT", value_name = "BYTES")]
    pub max_output: Option<usize>,

    /// Largest sum of the manifests of a plain directory, in bytes [default: 10 MiB]
    #[arg(long, env = "PINION_MAX_DIRECTORY_BYTES", value_name = "BYTES")]
    pub max_directory_bytes: Option<u64>,

    /// Memory that one process of Helm, Kustomize or Git may use, in bytes [default: 2 GiB]
    #[arg(long, env = "PINION_TOOL_MEMORY", value_name = "BYTES")]
    pub tool_memory: Option<u64>,

    /// What to do where the kernel keeps less of the sandbox of tools than is asked for [default: require for tools that fetch by Git or
    /// http, best-effort for the others]
    #[arg(long, env = "PINION_SANDBOX", value_name = "MODE", hide_possible_values = false)]
    pub sandbox: Option<Mode>,

    /// Paths that tools may read and execute besides their own. Whoever can commit a chart can read them, too: no keys
    #[arg(long, env = "PINION_SANDBOX_READABLE", value_name = "PATH", value_delimiter = ',')]
    pub sandbox_readable: Option<Vec<PathBuf>>,

    /// Configuration for the ssh that fetches for Git, with IdentityFile and UserKnownHostsFile. It and what is in its directory are read
    /// by ssh alone, which tenants cannot direct [default: that of /etc/ssh]
    #[arg(long, env = "PINION_SSH_CONFIG", value_name = "FILE")]
    pub ssh_config: Option<PathBuf>,

    /// Use no newer version of Landlock than this, 0 for none: for tests
    #[arg(long, env = "PINION_SANDBOX_ABI", value_name = "N", hide = true)]
    #[serde(skip)]
    pub sandbox_abi: Option<u8>,

    /// Do without seccomp: for tests
    #[arg(long, env = "PINION_SANDBOX_WITHOUT_SECCOMP", hide = true)]
    #[serde(skip)]
    pub sandbox_without_seccomp: bool,
}

/// The block `egress` of the file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RawEgress {
    pub hosts: Option<Vec<String>>,
    pub cidrs: Vec<String>,
    /// Numbers, or texts such as `8000-8999`.
    pub ports: Vec<Port>,
}

/// A port as YAML has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Port {
    Number(u16),
    Text(String),
}

impl Port {
    fn text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

/// Settings, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub registries: RegistriesConfig,
    pub store: PathBuf,
    pub store_bytes: u64,
    pub cache_bytes: u64,
    pub registries_conf: Option<PathBuf>,
    pub pins_socket: PathBuf,
    pub allow_registries: Option<Vec<HostPattern>>,
    pub egress: Arc<Policy>,
    pub allow_application_credentials: bool,
    pub tags_ttl: Duration,
    pub digests_ttl: Duration,
    pub lookup_timeout: Duration,
    pub platforms: Vec<Platform>,
    pub image_paths: Vec<ImagePath>,
    pub tools: Tools,
    /// Asks registries, as configured.
    pub client: Client,
    /// What the client has asked.
    pub requests: Requests,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("configuration `{path}` cannot be read")]
    Read {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("configuration `{path}`: {reason}")]
    File { path: String, reason: String },
    #[error("`{name}`: {reason}")]
    Setting { name: &'static str, reason: String },
    #[error("{0}")]
    Registries(String),
}

impl Raw {
    /// Reads the file, lays the settings over it, and checks everything.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], naming the setting.
    pub fn check(self) -> Result<Config, ConfigError> {
        let file = self.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let raw = self.over(file);
        let default_conf = || Path::new(REGISTRIES_CONF).exists().then(|| REGISTRIES_CONF.into());
        let registries_conf: Option<PathBuf> = raw.registries_conf.or_else(default_conf);
        let registries = registries_conf.as_deref().map_or_else(|| Ok(RegistriesConfig::default()), RegistriesConfig::load);
        let store = raw.store.unwrap_or_else(default_store);
        let registries = registries.map_err(|error| ConfigError::Registries(crate::failure::chain(&error)))?;
        let options = raw.kustomize_build_options.unwrap_or_default();
        let kustomize_build_options = shell_words::split(&options)
            .map_err(|error| ConfigError::Setting { name: "kustomize-build-options", reason: error.to_string() })?;
        let egress = raw.egress.unwrap_or_default();
        let ports: Vec<String> = egress.ports.into_iter().map(Port::text).collect();
        let egress = Policy {
            hosts: raw.egress_hosts.or(egress.hosts).map(|hosts| parse("egress-hosts", &hosts)).transpose()?,
            cidrs: parse("egress-cidrs", &raw.egress_cidrs.unwrap_or(egress.cidrs))?,
            ports: parse("egress-ports", &raw.egress_ports.unwrap_or(ports))?,
        };
        if let Some(address) = egress.hosts.iter().flatten().find(|host| host.is_address()) {
            return Err(ConfigError::Setting {
                name: "egress-hosts",
                reason: format!("`{address}` is an address: name it in `egress-cidrs`"),
            });
        }
        let egress = Arc::new(egress);
        let allow_registries = raw.allow_registries.map(|hosts| parse("allow-registries", &hosts)).transpose()?;
        let allow_application_credentials = raw.allow_application_credentials.unwrap_or_default();
        let lookup_timeout = duration("lookup-timeout", raw.lookup_timeout.as_deref(), 30)?;
        let probed = Level::probe();
        let level = Level {
            landlock: raw.sandbox_abi.map_or(probed.landlock, |abi| abi.min(probed.landlock)),
            seccomp: probed.seccomp && !raw.sandbox_without_seccomp,
        };
        let readable = raw.sandbox_readable.unwrap_or_default();
        readable.iter().try_for_each(|path| existing("sandbox-readable", path))?;
        raw.tool_memory.map_or(Ok(0), |memory| at_least("tool-memory", memory, MIN_TOOL_MEMORY))?;
        raw.ssh_config.iter().try_for_each(|path| existing("ssh-config", path))?;
        let sandboxes = Sandboxes::new(raw.sandbox.unwrap_or_default(), level, readable).with(raw.ssh_config, raw.tool_memory);
        let requests = Requests::default();
        let limits = Limits {
            allowed_hosts: allow_registries.clone(),
            egress: Arc::clone(&egress),
            allow_application_credentials,
            // A little less than the budget, so that the registry's own failure is what is reported.
            deadline: lookup_timeout.mul_f64(0.9),
            requests: requests.clone(),
            sandboxes: sandboxes.clone(),
            ..Limits::default()
        };
        let client = Client::new(registries.clone(), limits);
        Ok(Config {
            registries,
            registries_conf,
            store_bytes: at_least("store-bytes", raw.store_bytes.unwrap_or(512 << 20), MIN_STORE)?,
            cache_bytes: at_least("cache-bytes", raw.cache_bytes.unwrap_or(128 << 20), MIN_CACHE)?,
            pins_socket: raw.pins_socket.unwrap_or_else(|| store.join("pins.sock")),
            allow_registries,
            allow_application_credentials,
            tags_ttl: duration("tags-ttl", raw.tags_ttl.as_deref(), 60)?,
            digests_ttl: duration("digests-ttl", raw.digests_ttl.as_deref(), 3600)?,
            lookup_timeout,
            platforms: match raw.platforms {
                Some(texts) => parse("platforms", &texts)?,
                None => vec![Platform::native()],
            },
            image_paths: parse("image-paths", &raw.image_paths.unwrap_or_default())?,
            tools: Tools {
                helm: raw.helm.unwrap_or_else(|| "helm".into()),
                kustomize: raw.kustomize.unwrap_or_else(|| "kustomize".into()),
                templates: Runner::Process,
                timeout: duration("render-timeout", raw.render_timeout.as_deref(), 90)?,
                max_output: raw.max_output.unwrap_or(100 * 1024 * 1024),
                kustomize_build_options,
                value_file_schemes: schemes(raw.value_file_schemes.unwrap_or_default())?,
                max_directory_bytes: raw.max_directory_bytes.unwrap_or(10 * 1024 * 1024),
                memo: None,
                sandboxes,
                charts: Charts::new(Fetcher::new(Arc::clone(&egress)), client.clone(), Some(store.join("charts"))),
                egress: Arc::clone(&egress),
            },
            egress,
            store,
            client,
            requests,
        })
    }

    fn over(self, file: Self) -> Self {
        Self {
            config: self.config,
            registries_conf: self.registries_conf.or(file.registries_conf),
            store: self.store.or(file.store),
            store_bytes: self.store_bytes.or(file.store_bytes),
            cache_bytes: self.cache_bytes.or(file.cache_bytes),
            pins_socket: self.pins_socket.or(file.pins_socket),
            allow_registries: self.allow_registries.or(file.allow_registries),
            egress: file.egress,
            egress_hosts: self.egress_hosts,
            egress_cidrs: self.egress_cidrs,
            egress_ports: self.egress_ports,
            allow_application_credentials: self.allow_application_credentials.or(file.allow_application_credentials),
            tags_ttl: self.tags_ttl.or(file.tags_ttl),
            digests_ttl: self.digests_ttl.or(file.digests_ttl),
            lookup_timeout: self.lookup_timeout.or(file.lookup_timeout),
            platforms: self.platforms.or(file.platforms),
            image_paths: self.image_paths.or(file.image_paths),
            helm: self.helm.or(file.helm),
            kustomize: self.kustomize.or(file.kustomize),
            kustomize_build_options: self.kustomize_build_options.or(file.kustomize_build_options),
            value_file_schemes: self.value_file_schemes.or(file.value_file_schemes),
            render_timeout: self.render_timeout.or(file.render_timeout),
            max_output: self.max_output.or(file.max_output),
            max_directory_bytes: self.max_directory_bytes.or(file.max_directory_bytes),
            sandbox: self.sandbox.or(file.sandbox),
            sandbox_readable: self.sandbox_readable.or(file.sandbox_readable),
            ssh_config: self.ssh_config.or(file.ssh_config),
            tool_memory: self.tool_memory.or(file.tool_memory),
            sandbox_abi: self.sandbox_abi,
            sandbox_without_seccomp: self.sandbox_without_seccomp,
        }
    }
}

fn read(path: &Path) -> Result<Raw, ConfigError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: shown.clone(), source })?;
    if text.trim().is_empty() {
        return Ok(Raw::default());
    }
    crate::yaml::from_str(&text).map_err(|error| ConfigError::File { path: shown, reason: error.to_string() })
}

fn duration(name: &'static str, text: Option<&str>, default: u64) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(Duration::from_secs(default)) };
    humantime::parse_duration(text)
        .map_err(|error| ConfigError::Setting { name, reason: format!("`{text}` is no duration: {error}") })
}

fn schemes(schemes: Vec<String>) -> Result<Vec<String>, ConfigError> {
    match schemes.iter().find(|scheme| !["http", "https"].contains(&scheme.as_str())) {
        Some(other) => {
            let reason = format!("`{}` is none of `https` and `http`", crate::image::printable(other));
            Err(ConfigError::Setting { name: "value-file-schemes", reason })
        }
        None => Ok(schemes),
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(name: &'static str, texts: &[String]) -> Result<Vec<T>, ConfigError> {
    texts
        .iter()
        .map(|text| text.parse().map_err(|error: T::Err| ConfigError::Setting { name, reason: error.to_string() }))
        .collect()
}

/// Bytes of a store that holds something.
const MIN_STORE: u64 = 4 << 20;

/// Bytes of a cache that holds something.
const MIN_CACHE: u64 = 1 << 20;

/// Memory with which Helm and Kustomize render something, in bytes.
const MIN_TOOL_MEMORY: u64 = 256 << 20;

fn at_least(name: &'static str, bytes: u64, least: u64) -> Result<u64, ConfigError> {
    let reason = || format!("{bytes} bytes are too few: write at least {least}");
    if bytes < least { Err(ConfigError::Setting { name, reason: reason() }) } else { Ok(bytes) }
}

/// Refuses a path that does not lead from the root, or to nothing: a sandbox would be without it in silence.
fn existing(name: &'static str, path: &Path) -> Result<(), ConfigError> {
    if path.is_absolute() && path.exists() {
        return Ok(());
    }
    let shown = crate::image::printable(&path.to_string_lossy());
    Err(ConfigError::Setting { name, reason: format!("`{shown}` is not there; write a path from the root") })
}

/// State outlives caches: a pin that is lost in an outage is lost for good.
fn default_store() -> PathBuf {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join(".local/state"));
    match std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or(home) {
        Some(state) => state.join("pinion"),
        None => std::env::temp_dir().join(format!("pinion-{}", rustix::process::getuid().as_raw())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str, raw: Raw) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        let raw = Raw { config: Some(file.path().to_owned()), ..raw };
        raw.check().map_err(|error| error.to_string().replace(&file.path().display().to_string(), "FILE"))
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let text =
            "tags-ttl: 2m\nlookup-timeout: 5s\nkustomize-build-options: --enable-helm '--x=a b'\nplatforms: [linux/arm64]\n";
        let config = with_file(text, Raw { tags_ttl: Some("10s".into()), ..Raw::default() }).expect("settings");
        assert_eq!((config.tags_ttl, config.lookup_timeout), (Duration::from_secs(10), Duration::from_secs(5)));
        assert_eq!(config.digests_ttl, Duration::from_secs(3600));
        assert_eq!(config.tools.kustomize_build_options, ["--enable-helm", "--x=a b"]);
        assert_eq!(config.platforms[0].to_string(), "linux/arm64");
    }

    #[test]
    fn the_block_egress_is_read_and_flags_win() {
        let text = "egress: {hosts: [git.example.com, '*.example.org'], cidrs: [10.1.0.0/16], ports: [443, 8000-8999]}\n";
        let config = with_file(text, Raw::default()).expect("settings");
        assert_eq!(config.egress.hosts.as_ref().map(Vec::len), Some(2));
        assert_eq!((config.egress.cidrs.len(), config.egress.ports.len()), (1, 2));
        let flags = Raw { egress_cidrs: Some(vec!["fd00::/8".into()]), ..Raw::default() };
        assert_eq!(with_file(text, flags).expect("settings").egress.cidrs, ["fd00::/8".parse().expect("a range")]);
        let wrong = with_file("egress: {cidrs: [10.1.0.0/99]}\n", Raw::default()).expect_err("no range");
        assert_eq!(wrong, "`egress-cidrs`: `10.1.0.0/99` is not a range of addresses: write `10.1.0.0/16` or `fd00::/8`");
        assert!(with_file("egress: {host: [x]}\n", Raw::default()).is_err());
    }

    #[test]
    fn mistakes_name_the_setting() {
        assert_eq!(
            with_file("tags-ttl: soon\n", Raw::default()).expect_err("no duration"),
            "`tags-ttl`: `soon` is no duration: expected number at 0"
        );
        assert!(
            with_file("tag-ttl: 1s\n", Raw::default())
                .expect_err("unknown")
                .starts_with("configuration `FILE`: unknown field `tag-ttl`")
        );
        let missing = Raw { config: Some("/nothing/here".into()), ..Raw::default() };
        assert_eq!(missing.check().expect_err("no file").to_string(), "configuration `/nothing/here` cannot be read");
        assert!(with_file("image-paths: [x]\n", Raw::default()).is_err());
        assert!(with_file("value-file-schemes: [s3]\n", Raw::default()).is_err());
        assert!(with_file("sandbox: strict\n", Raw::default()).is_err());
    }
}
