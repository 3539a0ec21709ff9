//! Why a registry could not answer, sorted by what the caller or the user can do about it.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use rustls::CertificateError;

use crate::egress::Refusal;
use crate::egress::fetch::cause;

/// What was underneath.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// A cause that is a text of our own.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Because(pub String);

impl Because {
    pub fn cause(text: impl Into<String>) -> Cause {
        Arc::new(Self(text.into()))
    }
}

/// Why a question to a registry has no answer.
///
/// Texts from the registry in it are bounded and without control characters; there are no secrets in it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// The host may not be asked. Nothing was sent.
    #[error("registry host `{host}` may not be asked")]
    HostRefused { host: String, source: Refusal },
    /// The registry or its token service answered 401 or 403 to the credential named here, freshly read.
    #[error("registry denied access to `{repository}` with credential `{credential}`")]
    Denied { repository: String, credential: String },
    /// The registry says that it has no such repository, tag or digest.
    #[error("registry has no `{what}`")]
    NotFound { what: String },
    /// The registry answered 429 until the deadline, or our own rate limit leaves no room before it.
    #[error("registry `{registry}` limits requests")]
    Limited {
        registry: String,
        /// The time that the registry asked to wait, if it did.
        retry_after: Option<Duration>,
    },
    /// The registry could not be reached, answered 5xx, or took longer than the deadline.
    #[error("registry `{registry}` is unavailable")]
    Unavailable { registry: String, source: Cause },
    /// The answer is not what the specification says, or not what its digest says.
    #[error("registry `{registry}` sent an unusable answer")]
    Malformed { registry: String, source: Cause },
    /// A web page came instead of JSON, such as the login page of a proxy.
    #[error("registry `{registry}` sent a web page{} instead of JSON: `{url}` answered {status}", titled(.title))]
    WebPage {
        registry: String,
        /// What was asked, without its query.
        url: String,
        status: u16,
        title: Option<String>,
    },
    /// The registry's port was asked over TLS, and it answered in plain HTTP.
    #[error("registry `{registry}` answers without TLS at `https://{registry}`")]
    PlainHttp { registry: String },
    /// The registry's port was asked in plain HTTP, and it wants TLS.
    #[error("registry `{registry}` wants TLS at `http://{registry}`")]
    WantsTls { registry: String },
    /// The answer goes over one of our bounds.
    #[error("registry `{registry}` sent too much: more than {limit}")]
    TooLarge { registry: String, limit: String },
    /// The registry names a token service that it may not name. Nothing was sent there.
    #[error("registry `{registry}` names a token service on another host: `{realm}`")]
    Realm { registry: String, realm: String },
    /// The registry sends us elsewhere, where we don't go.
    #[error("registry `{registry}` redirects to `{location}`")]
    Redirected { registry: String, location: String },
    /// The credential could not be read.
    #[error("could not read credential `{credential}`")]
    Credentials { credential: String, source: Cause },
    /// The TLS settings of the registry are unusable, or its certificate is not trusted.
    #[error("no trusted connection to registry `{registry}`")]
    Tls { registry: String, source: Cause },
}

impl RegistryError {
    /// May the same question have an answer later although nobody changes anything?
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Limited { .. } | Self::Unavailable { .. })
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::HostRefused { host, source } => match source {
                Refusal::NotAllowed => "only an operator can add it to the hosts that may be asked".to_owned(),
                Refusal::Port => "an operator can permit the port with `egress.ports`".to_owned(),
                _ => {
                    let hint = format!("if `{host}` is meant, its operator declares it in `registries.conf`, with `prefix` and `api_url`");
                    // A redirect to another port or host, which another entry does not help.
                    source.hint().map_or(hint.clone(), |other| format!("{hint}; if a registry keeps its blobs there, {other}"))
                }
            },
            Self::Denied { credential, .. } if credential.starts_with("anonymous") => {
                "the repository is private or does not exist: name a credential in `registries.conf`, in docker's `config.json`, or with \
                 `--pull-secret`"
                    .to_owned()
            }
            Self::Denied { credential, .. } => format!("check that `{credential}` is valid and may pull this repository"),
            Self::NotFound { .. } => {
                "check the spelling; some registries say this of private repositories to those who may not see them".to_owned()
            }
            Self::Limited { retry_after: Some(wait), .. } => format!("the registry asks to wait {} seconds", wait.as_secs()),
            Self::Limited { .. } => {
                "a credential raises the limit of most registries; `limit` in `registries.conf` is our own, in requests a second".to_owned()
            }
            Self::Realm { registry, realm } => {
                format!("if it is meant, add `realms: [\"{realm}\"]` to the entry of `{registry}` in `registries.conf`")
            }
            Self::Redirected { .. } => "check `api_url` in `registries.conf`: it names the registry itself, with the right scheme".to_owned(),
            Self::WebPage { .. } => {
                "check `api_url` in `registries.conf`: it must lead to the registry itself, not to its web interface or to a proxy's \
                 login page"
                    .to_owned()
            }
            Self::PlainHttp { registry } => format!(
                "if `{registry}` is to be asked without TLS, set `api_url: http://{registry}` in its entry in `registries.conf` \
                 (`insecure: true` is not enough: it keeps TLS and skips the check of the certificate); otherwise use the port that has TLS"
            ),
            Self::WantsTls { registry } => format!("set `api_url: https://{registry}` in its entry in `registries.conf`"),
            Self::Tls { source, .. } => tls_hint(&**source),
            Self::Unavailable { registry, .. } => {
                format!("check that `{registry}` is up, and that DNS and the network let this machine reach it")
            }
            Self::Malformed { registry, .. } => {
                format!("if `{registry}` is behind a proxy or has an `api_url` in `registries.conf`, check that this leads to a registry")
            }
            Self::Credentials { .. } => {
                "check that the variable, file or program that the credential names is there, and gives `user:password`".to_owned()
            }
            Self::TooLarge { .. } => return None,
        })
    }
}

/// The title of a web page, for a message.
fn titled(title: &Option<String>) -> String {
    title.as_ref().map(|title| format!(" (`{title}`)")).unwrap_or_default()
}

/// What to change where TLS fails.
fn tls_hint(source: &(dyn Error + 'static)) -> String {
    match cause::<rustls::Error>(source) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            "its certificate has expired: renew it, or check this machine's clock"
        }
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "its certificate is for another name: write a name of the certificate in `api_url` in `registries.conf`",
        Some(rustls::Error::InvalidCertificate(_)) | None => {
            "name its authority with `ca_file` or `ca_data` in `registries.conf`"
        }
        Some(_) => "check host and port of `api_url` in `registries.conf`: the server does not speak TLS as expected",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_reads_once_from_outside_in() {
        let error = RegistryError::Unavailable { registry: "ghcr.io".to_owned(), source: Because::cause("it answered 503") };
        assert_eq!(error.to_string(), "registry `ghcr.io` is unavailable");
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("it answered 503"));
        assert!(error.is_transient());
    }

    #[test]
    fn what_a_user_can_mend_has_a_hint() {
        let denied =
            |credential: &str| RegistryError::Denied { repository: "ghcr.io/a/b".to_owned(), credential: credential.to_owned() };
        assert!(denied("anonymous").hint().is_some_and(|hint| hint.contains("--pull-secret")));
        assert!(denied("env:GHCR").hint().is_some_and(|hint| hint.contains("env:GHCR")));
        let realm = RegistryError::Realm { registry: "r.example".to_owned(), realm: "https://auth.example/token".to_owned() };
        assert!(realm.hint().is_some_and(|hint| hint.contains("realms: [\"https://auth.example/token\"]")));
    }
}
