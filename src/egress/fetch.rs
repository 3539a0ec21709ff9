//! Fetching one file by its address, as far as the policy permits: a chart repository's index, a chart, a remote value file.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::LOCATION;
use reqwest::{StatusCode, Url};

use super::{Addresses, Guard, Policy, Refusal};
use crate::failure::masked;

/// Redirects that are followed one after another; each is checked as the first address was.
const HOPS: usize = 5;

/// Time to connect.
const CONNECT: Duration = Duration::from_secs(10);

/// Time between two pieces of an answer, and before the first.
const READ: Duration = Duration::from_secs(20);

/// Why a file could not be fetched. Texts hold no password and no query.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    #[error("`{url}` is not an address")]
    Unreadable { url: String },
    #[error("`{host}` may not be connected to")]
    Refused { host: String, source: Refusal },
    #[error("`{url}` answered {status}")]
    Status { url: String, status: u16 },
    #[error("`{url}` redirects too often, or nowhere")]
    Redirects { url: String },
    #[error("`{url}` is longer than {limit} bytes")]
    TooLong { url: String, limit: usize },
    #[error("`{url}` could not be fetched")]
    Unavailable {
        url: String,
        #[source]
        source: Arc<reqwest::Error>,
    },
    #[error("`{url}` could not be fetched within {}", humantime::format_duration(*after))]
    Deadline { url: String, after: Duration },
}

impl FetchError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { source, .. } => source.hint().map(str::to_owned),
            _ => None,
        }
    }
}

/// Fetches files. Clones share connections.
#[derive(Clone, Debug)]
pub struct Fetcher {
    guard: Guard,
    clients: Arc<Mutex<HashMap<Addresses, reqwest::Client>>>,
}

impl Fetcher {
    /// Costs nothing: certificates are loaded with the first file.
    pub fn new(policy: Arc<Policy>) -> Self {
        Self { guard: Guard::new(policy, [], true), clients: Arc::default() }
    }

    /// The file at an address by http or https, of at most so many bytes.
    ///
    /// # Errors
    ///
    /// [`FetchError`].
    pub async fn get(&self, url: &str, limit: usize, within: Duration) -> Result<Bytes, FetchError> {
        let shown = masked(url);
        let deadline = FetchError::Deadline { url: shown.clone(), after: within };
        tokio::time::timeout(within, self.follow(url, &shown, limit)).await.unwrap_or(Err(deadline))
    }

    async fn follow(&self, url: &str, shown: &str, limit: usize) -> Result<Bytes, FetchError> {
        let url_text = || shown.to_owned();
        let mut at = Url::parse(url).map_err(|_| FetchError::Unreadable { url: url_text() })?;
        for _ in 0..=HOPS {
            let refused = |source| FetchError::Refused { host: host(&at), source };
            let which = self.guard.check(&at).map_err(refused)?;
            self.guard.check_behind_proxy(&at).await.map_err(refused)?;
            let failed = |error: reqwest::Error| match cause::<Refusal>(&error) {
                // The resolver's, which is layers below.
                Some(source) => FetchError::Refused { host: host(&at), source: *source },
                // Without the address, which may hold a password.
                None => FetchError::Unavailable { url: url_text(), source: Arc::new(error.without_url()) },
            };
            let mut response = self.client(which).map_err(failed)?.get(at.clone()).send().await.map_err(failed)?;
            let status = response.status();
            if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                at = location.and_then(|text| at.join(text).ok()).ok_or_else(|| FetchError::Redirects { url: url_text() })?;
                continue;
            }
            if !status.is_success() {
                return Err(FetchError::Status { url: url_text(), status: status.as_u16() });
            }
            let too_long = || FetchError::TooLong { url: url_text(), limit };
            if response.content_length().is_some_and(|length| length > limit as u64) {
                return Err(too_long());
            }
            let mut body = BytesMut::new();
            while let Some(chunk) = response.chunk().await.map_err(failed)? {
                if body.len() + chunk.len() > limit {
                    return Err(too_long());
                }
                body.extend_from_slice(&chunk);
            }
            return Ok(body.freeze());
        }
        Err(FetchError::Redirects { url: url_text() })
    }

    /// The client that connects to such addresses alone.
    fn client(&self, which: Addresses) -> Result<reqwest::Client, reqwest::Error> {
        let kept = || self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = kept().get(&which) {
            return Ok(client.clone());
        }
        install_provider();
        let client = reqwest::Client::builder()
            .user_agent(concat!("pinion/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT)
            .read_timeout(READ)
            .dns_resolver(self.guard.resolver(which))
            .build()?;
        Ok(kept().entry(which).or_insert(client).clone())
    }
}

/// Chooses the cryptography of all TLS in this process, without which reqwest panics.
pub fn install_provider() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // It fails if the program has chosen before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

fn host(url: &Url) -> String {
    super::authority(url).unwrap_or_else(|| url.scheme().to_owned())
}

/// Looks for a cause of one type. An [`std::io::Error`] hides what it wraps from `source`, so it is opened.
pub fn cause<'a, T: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = inner.map(|inner| inner as _).or_else(|| error.source());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    /// Serves one answer after the other on loopback, and says on which port.
    fn serve(answers: Vec<String>) -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().expect("a caller");
                let mut head = [0; 4096];
                let _ = stream.read(&mut head);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        port
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    fn fetcher() -> Fetcher {
        Fetcher::new(Arc::new(Policy { cidrs: vec!["127.0.0.0/8".parse().expect("a range")], ..Policy::default() }))
    }

    const SOON: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn redirects_are_followed_and_checked() {
        let end = serve(vec![ok("index")]);
        let redirect =
            |to: &str| format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let start = serve(vec![
            redirect(&format!("http://127.0.0.1:{end}/x")),
            redirect("http://10.0.0.1/x"),
            redirect("file:///etc/passwd"),
        ]);
        let url = format!("http://127.0.0.1:{start}/index.yaml");
        assert_eq!(&fetcher().get(&url, 100, SOON).await.expect("a file")[..], b"index");
        let refused = fetcher().get(&url, 100, SOON).await.expect_err("another address");
        assert!(matches!(refused, FetchError::Refused { source: Refusal::Literal, .. }) && refused.hint().is_some(), "{refused}");
        let refused = fetcher().get(&url, 100, SOON).await.expect_err("no file");
        assert!(matches!(refused, FetchError::Refused { source: Refusal::Insecure | Refusal::Unreadable, .. }), "{refused:?}");
    }

    #[tokio::test]
    async fn what_is_not_permitted_is_not_asked() {
        let fetcher = Fetcher::new(Arc::default());
        for url in [
            "http://127.0.0.1:1/x",
            "https://localhost/x",
            "http://[::1]/",
            "https://metadata.google.internal/",
            "http://2130706433/",
        ] {
            let refused = fetcher.get(url, 100, SOON).await.expect_err(url);
            assert!(matches!(refused, FetchError::Refused { .. }), "{url}: {refused}");
        }
        assert!(matches!(fetcher.get("no address", 1, SOON).await, Err(FetchError::Unreadable { .. })));
    }

    #[tokio::test]
    async fn length_and_status_count_and_no_password_is_told() {
        let port =
            serve(vec![ok("0123456789"), "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into()]);
        let url = format!("http://user:s3cret@127.0.0.1:{port}/x?token=s3cret");
        let too_long = fetcher().get(&url, 9, SOON).await.expect_err("too long");
        assert!(matches!(too_long, FetchError::TooLong { .. }), "{too_long}");
        let missing = fetcher().get(&url, 9, SOON).await.expect_err("not there");
        assert!(
            missing.to_string().ends_with("answered 404") && !format!("{missing} {missing:?}").contains("s3cret"),
            "{missing:?}"
        );
    }
}
