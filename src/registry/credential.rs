//! Credentials: where they come from, and the types that keep them from being printed.
//!
//! A [`Source`] is written by an operator or, for its own images, by an application; a [`Credential`] is what it yields. Sources follow
//! Image Updater's syntax: `env:NAME`, `ext:/path`, `secret:namespace/name#field`, `pullsecret:namespace/name`. Where `registries.conf`
//! names none, docker's `config.json` is asked (`credential/docker.rs`).
//!
//! Programs that yield credentials (`ext:` scripts, docker's helpers) run in their own process group with ten seconds and 64 KiB of
//! output. They inherit our environment, since that is where cloud identities are, without Argo CD's variables, which applications can
//! set, and without the variables that `registries.conf` names as other registries' credentials.

pub(super) mod docker;
pub(super) mod helper;
pub(super) mod provider;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use reqwest::header::HeaderValue;

use self::helper::{Helpers, successful};
use super::error::{Because, Cause};

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text. Callers may send it, never print it.
    pub(super) fn extract(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What proves who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    Password {
        user: Secret,
        password: Secret,
    },
    /// A refresh token for the registry's token service, as `docker login` stores it for some registries.
    IdentityToken(Secret),
}

impl Credential {
    /// Reads `user:password`. One line end after it is not part of the password, since editors and `echo` write it.
    pub(super) fn read(text: &str) -> Option<Self> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        let (user, password) = text.split_once(':')?;
        if user.is_empty() || password.is_empty() {
            return None;
        }
        Some(Self::password(user, password))
    }

    pub(super) fn password(user: &str, password: &str) -> Self {
        Self::Password { user: Secret::new(user), password: Secret::new(password) }
    }
}

/// `Authorization: Basic` with these.
pub(super) fn basic(user: &Secret, password: &Secret) -> HeaderValue {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", user.extract(), password.extract()));
    let mut value = HeaderValue::try_from(format!("Basic {text}")).expect("base64 is legal in a header");
    value.set_sensitive(true);
    value
}

/// Why credentials in Kubernetes' secrets do not work.
const NO_KUBERNETES: &str = "this version does not read Kubernetes secrets: use `env:`, `ext:` or docker's config.json";

/// Where a credential comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// `env:NAME`: `user:password` in an environment variable.
    Variable(String),
    /// `ext:/path`: the one line `user:password` that this program prints.
    Script(PathBuf),
    /// `secret:namespace/name#field`: `user:password` in a field of a Kubernetes secret.
    Secret { namespace: String, name: String, field: String },
    /// `pullsecret:namespace/name`: a Kubernetes secret with docker's `config.json`.
    PullSecret { namespace: String, name: String },
}

/// Why a text is not a [`Source`]. It does not hold the text, which may be a password in the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SourceError {
    #[error("write `env:NAME`, `ext:/path`, `secret:namespace/name#field` or `pullsecret:namespace/name`")]
    Unknown,
    #[error("the name of a variable is missing, or is none")]
    Variable,
    #[error("the path of the program is not absolute")]
    Script,
    #[error("write `secret:namespace/name#field`")]
    Secret,
    #[error("write `pullsecret:namespace/name`")]
    PullSecret,
}

impl FromStr for Source {
    type Err = SourceError;

    /// Reads a source. `registry=` before it is skipped, as in Image Updater.
    fn from_str(text: &str) -> Result<Self, SourceError> {
        let text = text.split_once('=').map_or(text, |(_, rest)| rest);
        let (kind, definition) = text.split_once(':').ok_or(SourceError::Unknown)?;
        if definition.contains(':') {
            return Err(SourceError::Unknown);
        }
        let name = |text: &str| {
            let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
            (!text.is_empty() && text.len() <= 253 && text.bytes().all(legal)).then(|| text.to_owned())
        };
        let named = |text: &str| text.split_once('/').and_then(|(namespace, rest)| Some((name(namespace)?, name(rest)?)));
        match kind.to_ascii_lowercase().as_str() {
            "env" if !definition.is_empty() && !definition.contains(['=', '\0']) => Ok(Self::Variable(definition.to_owned())),
            "env" => Err(SourceError::Variable),
            "ext" if Path::new(definition).is_absolute() && !definition.contains('\0') => Ok(Self::Script(definition.into())),
            "ext" => Err(SourceError::Script),
            "secret" => {
                let (secret, field) = definition.split_once('#').ok_or(SourceError::Secret)?;
                let (namespace, name) = named(secret).ok_or(SourceError::Secret)?;
                let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
                if field.is_empty() || field.len() > 253 || !field.bytes().all(legal) {
                    return Err(SourceError::Secret);
                }
                Ok(Self::Secret { namespace, name, field: field.to_owned() })
            }
            "pullsecret" => {
                let (namespace, name) = named(definition).ok_or(SourceError::PullSecret)?;
                Ok(Self::PullSecret { namespace, name })
            }
            _ => Err(SourceError::Unknown),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "env:{name}"),
            Self::Script(path) => write!(f, "ext:{}", path.display()),
            Self::Secret { namespace, name, field } => write!(f, "secret:{namespace}/{name}#{field}"),
            Self::PullSecret { namespace, name } => write!(f, "pullsecret:{namespace}/{name}"),
        }
    }
}

/// Why an application cannot use the operator's kinds of credentials.
pub(super) const NOT_PERMITTED: &str =
    "applications may not name `env:` and `ext:`; the operator can allow it with `--allow-application-credentials`";

impl Source {
    /// Does it read Pinion's own environment or files?
    pub fn is_of_the_operator(&self) -> bool {
        matches!(self, Self::Variable(_) | Self::Script(_))
    }

    /// Why it cannot yield a credential, as far as that can be told without reading it: for operators, before the first 401.
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Variable(name) => match std::env::var(name) {
                Err(std::env::VarError::NotPresent) => Some(format!("the environment variable `{name}` is not set")),
                Err(std::env::VarError::NotUnicode(_)) => Some(format!("the environment variable `{name}` is not text")),
                Ok(value) if Credential::read(&value).is_none() => Some(format!("`{name}` does not hold `user:password`")),
                Ok(_) => None,
            },
            Self::Script(path) => match std::fs::metadata(path) {
                Ok(metadata) if !metadata.is_file() => Some("it is not a file".to_owned()),
                Ok(metadata) if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o111 == 0 => {
                    Some("it is not executable".to_owned())
                }
                Ok(_) => None,
                Err(error) => Some(error.to_string()),
            },
            Self::Secret { .. } | Self::PullSecret { .. } => Some(NO_KUBERNETES.to_owned()),
        }
    }

    /// Reads the credential anew.
    pub(super) async fn read(&self, helpers: &Helpers) -> Result<Credential, Cause> {
        match self {
            Self::Variable(name) => {
                let value = std::env::var(name).map_err(|error| match error {
                    std::env::VarError::NotPresent => Because::cause(format!("the environment variable `{name}` is not set")),
                    std::env::VarError::NotUnicode(_) => Because::cause(format!("the environment variable `{name}` is not text")),
                })?;
                Credential::read(&value).ok_or_else(|| Because::cause(format!("`{name}` does not hold `user:password`")))
            }
            Self::Script(path) => {
                let output = successful(helpers.run(path.as_os_str(), &[], b"").await?)?;
                let text = String::from_utf8(output).map_err(|_| Because::cause("the program's output is not text"))?;
                let one_line =
                    text.strip_suffix('\n').is_none_or(|line| !line.contains('\n')) && text.trim_end().lines().count() == 1;
                Credential::read(&text)
                    .filter(|_| one_line)
                    .ok_or_else(|| Because::cause("the program's output is not the one line `user:password`"))
            }
            Self::Secret { .. } | Self::PullSecret { .. } => Err(Because::cause(NO_KUBERNETES)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_printed() {
        let secret = Secret::new("s3cret");
        let password = Credential::password("alice", "s3cret");
        let token = Credential::IdentityToken(secret.clone());
        let header = basic(&secret, &secret);
        for shown in [format!("{secret} {secret:?}"), format!("{password:?}"), format!("{token:?}"), format!("{header:?}")] {
            assert!(!shown.contains("s3cret") && !shown.contains("alice") && !shown.contains("czNjcmV0"), "{shown}");
        }
    }

    /// The forms of `credentials` in Image Updater's registries.conf.
    #[test]
    fn sources_are_read_as_image_updater_reads_them() {
        for (text, shown) in [
            ("env:GHCR", "env:GHCR"),
            ("ENV:GHCR", "env:GHCR"),
            ("ext:/app/auth.sh", "ext:/app/auth.sh"),
            ("secret:argocd/ghcr#creds", "secret:argocd/ghcr#creds"),
            ("pullsecret:argocd/ghcr", "pullsecret:argocd/ghcr"),
            ("ghcr.io=pullsecret:argocd/ghcr", "pullsecret:argocd/ghcr"),
        ] {
            assert_eq!(text.parse::<Source>().expect(text).to_string(), shown);
        }
        for text in [
            "",
            "env:",
            "GHCR",
            "ext:auth.sh",
            "secret:argocd/ghcr",
            "secret:ghcr#x",
            "pullsecret:ghcr",
            "pullsecret:a/b/c",
            "alice:s3cret",
            "env:a:b",
        ] {
            let error = text.parse::<Source>().expect_err(text).to_string();
            assert!(!error.contains("s3cret"));
        }
    }

    #[test]
    fn one_line_end_is_not_part_of_a_password() {
        for (text, password) in
            [("a:b", "b"), ("a:b\n", "b"), ("a:b\r\n", "b"), ("a:b\n\n", "b\n"), ("a:b:c", "b:c"), ("a: b ", " b ")]
        {
            assert_eq!(Credential::read(text), Some(Credential::password("a", password)), "{text:?}");
        }
        for text in ["", "a", ":b", "a:", "a:\n"] {
            assert_eq!(Credential::read(text), None, "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_missing_variable_is_named() {
        let source: Source = "env:PINION_TEST_NO_SUCH_VARIABLE".parse().expect("a source");
        let error = source.read(&Helpers::default()).await.expect_err("not set");
        assert_eq!(error.to_string(), "the environment variable `PINION_TEST_NO_SUCH_VARIABLE` is not set");
    }

    #[tokio::test]
    async fn kubernetes_secrets_are_said_to_need_its_api() {
        for text in ["secret:argocd/ghcr#creds", "pullsecret:argocd/ghcr"] {
            let error = text.parse::<Source>().expect(text).read(&Helpers::default()).await.expect_err(text);
            assert!(error.to_string().contains("does not read Kubernetes secrets"));
        }
    }
}
