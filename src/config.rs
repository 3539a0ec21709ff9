//! What the operator sets: flags, environment (`PINION_*`) and a file become one checked [`Config`].
//!
//! A flag wins over its variable, the variable over the file ([`mod@file`]), the file over the default.

pub mod file;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Arg, Args};

use crate::egress::fetch::Fetcher;
use crate::egress::{HostPattern, Policy};
use crate::image::Platform;
use crate::manifest::ImagePath;
use crate::metrics::Requests;
use crate::process::Runner;
use crate::process::sandbox::{Level, Mode, Sandboxes};
use crate::registry::{Client, Limits, RegistriesConfig};
use crate::render::Tools;
use crate::render::charts::Charts;

/// Where Image Updater keeps its `registries.conf`: read if it is there.
const REGISTRIES_CONF: &str = "/app/config/registries.conf";

/// The heading of the settings in `--help`.
const HEADING: &str = "Operator settings (also as PINION_… variables, or in a file)";

/// Hides a setting from the help of a command that does not use it. The command takes it all the same: variables and the file are for all
/// commands.
pub fn shown_if_used(flag: Arg, used: &[&str]) -> Arg {
    let is_used = flag.get_long().is_some_and(|name| used.contains(&name));
    let is_setting = flag.get_help_heading() == Some(HEADING);
    if is_setting && !is_used { flag.hide(true) } else { flag }
}

/// Settings as they are written. The default of a field is chosen where it is checked.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = HEADING)]
pub struct Raw {
    /// A YAML file with settings: its keys are the flags of `pinion serve` without `--`, such as `tags-ttl: 2m`
    #[arg(long, env = "PINION_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Image Updater's registries.conf [default: /app/config/registries.conf if it exists]
    #[arg(long, env = "PINION_REGISTRIES_CONF", value_name = "FILE")]
    pub registries_conf: Option<PathBuf>,

    /// Directory that keeps the last known good pins [default: ~/.local/state/pinion]
    #[arg(long, env = "PINION_STORE", value_name = "DIR")]
    pub store: Option<PathBuf>,

    /// Maximum size of the store on disk, in bytes. When it is exceeded, the projects that store most lose what they used longest ago
    /// [default: 512 MiB]
    #[arg(long, env = "PINION_STORE_BYTES", value_name = "BYTES")]
    pub store_bytes: Option<u64>,

    /// Maximum size of tags, metadata and pins in memory, in bytes. Shared fairly by AppProjects [default: 128 MiB]
    #[arg(long, env = "PINION_CACHE_BYTES", value_name = "BYTES")]
    pub cache_bytes: Option<u64>,

    /// Socket on which `pinion serve` answers `pinion generate`. Must not be in the plugin directory [default: pins.sock in the store]
    #[arg(long, env = "PINION_PINS_SOCKET", value_name = "FILE")]
    pub pins_socket: Option<PathBuf>,

    /// Hosts of registries that may be asked, such as `ghcr.io` or `*.example.com` [default: any public name]
    #[arg(long, env = "PINION_ALLOW_REGISTRIES", value_name = "HOST", value_delimiter = ',')]
    pub allow_registries: Option<Vec<String>>,

    /// Hosts that may be connected to, such as `git.example.com`, `charts.internal:8443` or `*.example.com` [default: any public name]
    ///
    /// Applies to registries, chart repositories, remote value files, and what Kustomize and Git fetch. A host without a wildcard may have
    /// any address. Registries in registries.conf need not be repeated.
    #[arg(long, env = "PINION_EGRESS_HOSTS", value_name = "HOST", value_delimiter = ',')]
    pub egress_hosts: Option<Vec<String>>,

    /// Addresses that may be connected to although they are not public, such as `10.1.0.0/16` [default: none]
    #[arg(long, env = "PINION_EGRESS_CIDRS", value_name = "CIDR", value_delimiter = ',')]
    pub egress_cidrs: Option<Vec<String>>,

    /// Ports that may be connected to, such as `443` or `8000-8999` [default: all]
    #[arg(long, env = "PINION_EGRESS_PORTS", value_name = "PORTS", value_delimiter = ',')]
    pub egress_ports: Option<Vec<String>>,

    /// Let applications name `env:` and `ext:` credentials, as Image Updater does
    #[arg(long, env = "PINION_ALLOW_APPLICATION_CREDENTIALS", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub allow_application_credentials: Option<bool>,

    /// How long a tag list, and the digest of a followed tag, stay fresh [default: 60s]
    #[arg(long, env = "PINION_TAGS_TTL", value_name = "DURATION")]
    pub tags_ttl: Option<String>,

    /// How long the digest of a newest-build candidate stays fresh [default: 1h]
    #[arg(long, env = "PINION_DIGESTS_TTL", value_name = "DURATION")]
    pub digests_ttl: Option<String>,

    /// Maximum time for all registry lookups of a render. After it, the last known good pin is used [default: 30s]
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
    /// No option opens the sandbox: Kustomize and the programs that it runs read the checkout, programs, libraries and public files of the
    /// system, and connect to what the `--egress-…` settings permit, as far as the kernel enforces it.
    #[arg(long, env = "PINION_KUSTOMIZE_BUILD_OPTIONS", value_name = "OPTIONS", allow_hyphen_values = true)]
    pub kustomize_build_options: Option<String>,

    /// Schemes of value files that may be fetched: `https`, `http` [default: none]
    #[arg(long, env = "PINION_VALUE_FILE_SCHEMES", value_name = "SCHEME", value_delimiter = ',')]
    pub value_file_schemes: Option<Vec<String>>,

    /// Maximum time of one Helm or Kustomize process [default: 90s]
    #[arg(long, env = "PINION_RENDER_TIMEOUT", value_name = "DURATION")]
    pub render_timeout: Option<String>,

    /// Maximum output of one Helm or Kustomize process, in bytes [default: 100 MiB]
    #[arg(long, env = "PINION_MAX_OUTPUT", value_name = "BYTES")]
    pub max_output: Option<usize>,

    /// Maximum size of all manifests of a plain directory, in bytes [default: 10 MiB]
    #[arg(long, env = "PINION_MAX_DIRECTORY_BYTES", value_name = "BYTES")]
    pub max_directory_bytes: Option<u64>,

    /// Maximum memory of one process of Helm, Kustomize or Git, in bytes [default: 2 GiB]
    #[arg(long, env = "PINION_TOOL_MEMORY", value_name = "BYTES")]
    pub tool_memory: Option<u64>,

    /// What to do if the kernel cannot enforce a tool's sandbox profile [default: require for tools that fetch by Git or http, best-effort
    /// for the others]
    #[arg(long, env = "PINION_SANDBOX", value_name = "MODE", hide_possible_values = false)]
    pub sandbox: Option<Mode>,

    /// Further paths that tools may read and execute. Everyone who can commit a chart can read them: do not list keys
    #[arg(long, env = "PINION_SANDBOX_READABLE", value_name = "PATH", value_delimiter = ',',
        value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub sandbox_readable: Option<Vec<PathBuf>>,

    /// ssh configuration for Git fetches, with IdentityFile and UserKnownHostsFile. Only ssh can read its directory [default: that of
    /// /etc/ssh]
    #[arg(long, env = "PINION_SSH_CONFIG", value_name = "FILE")]
    pub ssh_config: Option<PathBuf>,

    /// Use no newer version of Landlock than this, 0 for none: for tests
    #[arg(long, env = "PINION_SANDBOX_ABI", value_name = "N", hide = true)]
    pub sandbox_abi: Option<u8>,

    /// Do without seccomp: for tests
    #[arg(long, env = "PINION_SANDBOX_WITHOUT_SECCOMP", hide = true)]
    pub sandbox_without_seccomp: bool,
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
    #[error("`registries-conf`: {0}")]
    Registries(String),
}

impl Raw {
    /// Checks the settings. A file is not read here: it was, before ([`mod@file`]).
    ///
    /// # Errors
    ///
    /// [`ConfigError`], naming the setting.
    pub fn check(self) -> Result<Config, ConfigError> {
        let raw = self;
        let default_conf = || Path::new(REGISTRIES_CONF).exists().then(|| REGISTRIES_CONF.into());
        let registries_conf: Option<PathBuf> = raw.registries_conf.or_else(default_conf);
        let registries = registries_conf.as_deref().map_or_else(|| Ok(RegistriesConfig::default()), RegistriesConfig::load);
        let store = raw.store.unwrap_or_else(default_store);
        let registries = registries.map_err(|error| ConfigError::Registries(crate::failure::chain(&error)))?;
        let options = raw.kustomize_build_options.unwrap_or_default();
        let kustomize_build_options = shell_words::split(&options)
            .map_err(|error| ConfigError::Setting { name: "kustomize-build-options", reason: error.to_string() })?;
        let egress = Policy {
            hosts: raw.egress_hosts.map(|hosts| parse("egress-hosts", &hosts)).transpose()?,
            cidrs: parse("egress-cidrs", &raw.egress_cidrs.unwrap_or_default())?,
            ports: parse("egress-ports", &raw.egress_ports.unwrap_or_default())?,
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
        let mut readable = raw.sandbox_readable.unwrap_or_default();
        readable.retain(|path| !path.as_os_str().is_empty());
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
                render_cache: None,
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
}

fn duration(name: &'static str, text: Option<&str>, default: u64) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(Duration::from_secs(default)) };
    humantime::parse_duration(text)
        .map_err(|error| ConfigError::Setting { name, reason: format!("`{text}` is no duration: {error}") })
}

fn schemes(schemes: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let schemes: Vec<String> = parse("value-file-schemes", &schemes)?;
    match schemes.iter().find(|scheme| !["http", "https"].contains(&scheme.as_str())) {
        Some(other) => {
            let reason = format!("`{}` is none of `https` and `http`", crate::image::printable(other));
            Err(ConfigError::Setting { name: "value-file-schemes", reason })
        }
        None => Ok(schemes),
    }
}

/// The items of a list. An empty text is an empty list.
fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(name: &'static str, texts: &[String]) -> Result<Vec<T>, ConfigError> {
    texts
        .iter()
        .filter(|text| !text.is_empty() || texts.len() > 1)
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
    use clap::FromArgMatches;

    use super::file::File;
    use super::*;

    /// What a file and flags give, as in a command of ours.
    fn with_file(text: &str, flags: &[&str]) -> Result<Config, String> {
        let path = tempfile::NamedTempFile::new().expect("a file").into_temp_path();
        std::fs::write(&path, text).expect("written");
        let command = Raw::augment_args(clap::Command::new("pinion").no_binary_name(true));
        let named = |error: anyhow::Error| format!("{error:#}").replace(&path.display().to_string(), "FILE");
        let file = File::read(&path, &command.get_arguments().collect::<Vec<_>>()).map_err(|error| named(error.into()))?;
        let matches = file.lay(command).try_get_matches_from(flags).expect("flags");
        let raw = Raw::from_arg_matches(&matches).expect("settings");
        raw.check().map_err(|error| named(file.origin(&matches).explain(error.into())))
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let text =
            "tags-ttl: 2m\nlookup-timeout: 5s\nkustomize-build-options: --enable-helm '--x=a b'\nplatforms: [linux/arm64]\n";
        let config = with_file(text, &["--tags-ttl", "10s"]).expect("settings");
        assert_eq!((config.tags_ttl, config.lookup_timeout), (Duration::from_secs(10), Duration::from_secs(5)));
        assert_eq!(config.digests_ttl, Duration::from_secs(3600));
        assert_eq!(config.tools.kustomize_build_options, ["--enable-helm", "--x=a b"]);
        assert_eq!(config.platforms[0].to_string(), "linux/arm64");
        for text in ["", "  \n", "# nothing\n", "---\n", "tags-ttl: null\negress: {hosts: }\n"] {
            assert_eq!(with_file(text, &[]).expect(text).tags_ttl, Duration::from_secs(60), "{text}");
        }
    }

    #[test]
    fn the_block_egress_is_read_and_flags_win() {
        let text = "egress: {hosts: [git.example.com, '*.example.org'], cidrs: [10.1.0.0/16], ports: [443, 8000-8999]}\n";
        let config = with_file(text, &[]).expect("settings");
        assert_eq!(config.egress.hosts.as_ref().map(Vec::len), Some(2));
        assert_eq!((config.egress.cidrs.len(), config.egress.ports.len()), (1, 2));
        let flags = ["--egress-cidrs", "fd00::/8"];
        assert_eq!(with_file(text, &flags).expect("settings").egress.cidrs, ["fd00::/8".parse().expect("a range")]);
        let wrong = with_file("egress: {cidrs: [10.1.0.0/99]}\n", &[]).expect_err("no range");
        assert_eq!(
            wrong,
            "configuration `FILE`: `egress-cidrs`: `10.1.0.0/99` is not a range of addresses: write `10.1.0.0/16` or `fd00::/8`"
        );
        assert!(with_file("egress: {host: [x]}\n", &[]).is_err());
    }

    /// An empty list permits nothing: it must not become the default, which permits every public name.
    #[test]
    fn an_empty_list_is_not_the_default() {
        let text =
            "egress: {hosts: [], cidrs: [], ports: []}\nallow-registries: []\nsandbox-readable: []\nvalue-file-schemes: []\n";
        let config = with_file(text, &[]).expect("settings");
        assert_eq!((config.egress.hosts.clone(), config.allow_registries), (Some(Vec::new()), Some(Vec::new())));
        assert_eq!((config.egress.cidrs.len(), config.egress.ports.len()), (0, 0));
        assert_eq!(config.tools.value_file_schemes, Vec::<String>::new());
        assert_eq!(
            with_file("allow-registries: ['']\n", &[]).expect_err("a text").split(": ").nth(1),
            Some("`allow-registries`")
        );
    }

    #[test]
    fn mistakes_name_the_file_and_the_setting() {
        for (text, wanted) in [
            ("tags-ttl: soon\n", "`tags-ttl`: `soon` is no duration: expected number at 0"),
            ("tag-ttl: 1s\n", "unknown field `tag-ttl`: did you mean `tags-ttl`?"),
            ("nonsense: 1s\n", "unknown field `nonsense`: keys are the flags of `pinion serve --help`, without `--`"),
            ("sandbox-abi: 1\n", "unknown field `sandbox-abi`"),
            ("config: other.yaml\n", "`config`: a file cannot name another one"),
            ("image-paths: [x]\n", "`image-paths`: "),
            ("value-file-schemes: [s3]\n", "`value-file-schemes`: `s3` is none of `https` and `http`"),
            ("sandbox: strict\n", "`sandbox`: `strict` is none of `require`"),
            ("max-output: many\n", "`max-output`: `many`: invalid digit found in string"),
            ("max-output: 1.5\n", "`max-output`: put `1.5` in quotes, or write a whole number"),
            ("max-output: [1]\n", "`max-output`: it is one text, number or truth value"),
            ("helm: {x: 1}\n", "`helm`: it is one text, number or truth value"),
            ("platforms: {x: 1}\n", "`platforms`: it is a list of texts"),
            ("platforms: [[x]]\n", "`platforms`: it is a list of texts"),
            ("platforms: ['linux/arm64,linux/amd64']\n", "`platforms`: an item is not empty and has no `,`"),
            ("egress: [x]\n", "`egress`: it is a block with `hosts`, `cidrs` and `ports`"),
            ("egress: {host: [x]}\n", "`egress`: unknown field `host`: it has `hosts`, `cidrs` and `ports`"),
            ("egress: {ports: [443]}\negress-ports: 443\n", "`egress-ports` is given twice"),
            ("1: x\n", "`1` is not the name of a flag"),
            ("[x]\n", "it is not a mapping of flags to values"),
            ("tags-ttl: 1s\ntags-ttl: 2s\n", "duplicate entry with key \"tags-ttl\""),
        ] {
            let error = with_file(text, &[]).expect_err(text);
            assert!(error.starts_with(&format!("configuration `FILE`: {wanted}")), "{text}: {error}");
        }
        let missing = File::read(Path::new("/nothing/here"), &[]).err().expect("no file");
        assert_eq!(missing.to_string(), "configuration `/nothing/here` cannot be read");
        // A flag in its place is to blame, not the file.
        let flag = with_file("tags-ttl: 1s\n", &["--tags-ttl", "soon"]).expect_err("no duration");
        assert_eq!(flag, "`tags-ttl`: `soon` is no duration: expected number at 0");
    }
}
