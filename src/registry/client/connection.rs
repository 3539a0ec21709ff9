//! Sending one request to one registry: guard, rate, retries, bounded bodies.
//!
//! A [`Request`] goes in, a [`Reply`] of whatever status comes out; what 401 and 404 mean is decided elsewhere. Nothing is sent that has
//! not passed the guard, and redirects are never followed here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Limits;
use super::rate_limit::{RateLimiter, backoff, retry_after};
use crate::egress::fetch::{cause, install_provider};
use crate::egress::{Addresses, Guard, Refusal};
use crate::image::printable;
use crate::registry::config::{Endpoint, authority};
use crate::registry::error::{Because, RegistryError};

/// How often a request is sent at most.
const ATTEMPTS: u32 = 3;

/// Most that is read of an error's body, in bytes; it is for a message.
const ERROR_BODY: usize = 64 << 10;

/// How much of a body is looked at to tell what it is, in bytes.
const PAGE_HEAD: usize = 4096;

/// What is sent.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub url: Url,
    pub accept: Option<&'static str>,
    pub authorization: Option<HeaderValue>,
    /// `application/x-www-form-urlencoded`.
    pub form: Option<String>,
    /// Most that is read of a good reply's body, in bytes.
    pub cap: usize,
}

impl Request {
    pub fn get(url: Url, cap: usize) -> Self {
        Self { method: Method::GET, url, accept: None, authorization: None, form: None, cap }
    }
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    /// The error for a web page; [`None`] if this is none. A server may well send one as JSON.
    pub fn web_page(&self, at: &Url) -> Option<RegistryError> {
        let text = String::from_utf8_lossy(&self.body[..self.body.len().min(PAGE_HEAD)]);
        let start = text.trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
        let is_page = ["<!doctype html", "<html"].iter().any(|tag| start.starts_with(tag));
        let is_said =
            || self.header("content-type").is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"));
        if !(is_page || start.starts_with('<') && is_said()) {
            return None;
        }
        let mut url = at.clone();
        url.set_query(None);
        let url = printable(url.as_str());
        Some(RegistryError::WebPage { registry: authority(at), url, status: self.status.as_u16(), title: title(&text) })
    }

    /// A header's text, if it is one.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A registry, and what we keep for it.
#[derive(Debug)]
pub struct Connection {
    pub endpoint: Arc<Endpoint>,
    guard: Guard,
    limits: Arc<Limits>,
    /// Built when first needed: a registry over plain http never loads the system's certificates.
    clients: Mutex<HashMap<(Kind, Addresses), reqwest::Client>>,
    rate: RateLimiter,
    permits: Semaphore,
}

impl Connection {
    pub fn new(endpoint: Arc<Endpoint>, limits: Arc<Limits>) -> Self {
        let own = endpoint.declared.then(|| std::iter::once(&endpoint.api_url).chain(&endpoint.realms));
        let plain = endpoint.declared && endpoint.api_url.scheme() == "http";
        Self {
            guard: Guard::new(Arc::clone(&limits.egress), own.into_iter().flatten(), plain),
            rate: RateLimiter::new(endpoint.limit),
            permits: Semaphore::new(limits.concurrency.max(1)),
            clients: Mutex::default(),
            endpoint,
            limits,
        }
    }

    /// Checks a host before it is asked for the first time in a call.
    pub async fn check(&self, url: &Url) -> Result<(), RegistryError> {
        let refused = |source| RegistryError::HostRefused { host: authority(url), source };
        self.guard.check(url).map_err(refused)?;
        self.guard.check_behind_proxy(url).await.map_err(refused)
    }

    /// Sends a request, up to three times while it meets 408, 429, 5xx or a broken connection and there is time.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Limited`], [`RegistryError::Unavailable`], [`RegistryError::TooLarge`], [`RegistryError::HostRefused`],
    /// [`RegistryError::Tls`], [`RegistryError::PlainHttp`], [`RegistryError::WantsTls`]. A reply of any other status is a reply.
    pub async fn exchange(&self, request: &Request, deadline: Instant) -> Result<Reply, RegistryError> {
        let registry = authority(&request.url);
        let refused = |source| RegistryError::HostRefused { host: registry.clone(), source };
        let which = self.guard.check(&request.url).map_err(refused)?;
        let client = self.client(&request.url, which)?;
        let mut attempt = 1;
        loop {
            if !self.rate.acquire(deadline).await {
                return Err(RegistryError::Limited { registry, retry_after: None });
            }
            let permit = self.permits.acquire().await.expect("the semaphore is never closed");
            let outcome = self.send(&client, request).await;
            drop(permit);
            self.limits.requests.count(&registry, outcome.as_ref().ok().map(|reply| reply.status.as_u16()));
            let (error, wait) = match outcome {
                Ok(reply) => match passing(reply.status) {
                    None => return Ok(reply),
                    Some(_) if reply.status == StatusCode::TOO_MANY_REQUESTS => {
                        let retry_after = retry_after(&reply.headers, self.limits.clock.now());
                        (RegistryError::Limited { registry: registry.clone(), retry_after }, retry_after)
                    }
                    Some(text) => {
                        let source = Because::cause(text);
                        (
                            RegistryError::Unavailable { registry: registry.clone(), source },
                            retry_after(&reply.headers, self.limits.clock.now()),
                        )
                    }
                },
                Err(error @ RegistryError::Unavailable { .. }) => (error, None),
                Err(error) => return Err(error),
            };
            let wait = wait.unwrap_or_default().max(backoff(attempt));
            let again = Instant::now().checked_add(wait).filter(|again| attempt < ATTEMPTS && *again < deadline);
            let Some(again) = again else { return Err(error) };
            tracing::debug!(%registry, attempt, wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX), "request is sent again");
            tokio::time::sleep_until(again).await;
            attempt += 1;
        }
    }

    async fn send(&self, client: &reqwest::Client, request: &Request) -> Result<Reply, RegistryError> {
        let began = Instant::now();
        let mut builder = client.request(request.method.clone(), request.url.clone());
        if let Some(accept) = request.accept {
            builder = builder.header(ACCEPT, accept);
        }
        if let Some(value) = &request.authorization {
            builder = builder.header(AUTHORIZATION, value.clone());
        }
        if let Some(form) = &request.form {
            builder = builder.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.clone());
        }
        let failed = |error| classify(error, &request.url);
        let mut response = builder.send().await.map_err(failed)?;
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        let body = if passing(status).is_some() || status.is_redirection() {
            Bytes::new()
        } else {
            read(response, request, status).await?
        };
        tracing::debug!(
            registry = %authority(&request.url),
            method = %request.method,
            path = request.url.path(),
            status = status.as_u16(),
            bytes = body.len(),
            ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "asked"
        );
        if status == StatusCode::BAD_REQUEST && request.url.scheme() == "http" && wants_tls(&body) {
            return Err(RegistryError::WantsTls { registry: authority(&request.url) });
        }
        Ok(Reply { status, headers, body })
    }

    /// The client for a URL. It connects to the addresses that the guard permits there.
    fn client(&self, url: &Url, which: Addresses) -> Result<reqwest::Client, RegistryError> {
        let own = url.host_str() == self.endpoint.api_url.host_str();
        let kind = match url.scheme() {
            "http" => Kind::Plain,
            _ if own && self.endpoint.insecure => Kind::Unverified,
            _ => Kind::Verified,
        };
        let kept = || self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = kept().get(&(kind, which)) {
            return Ok(client.clone());
        }
        // A failure is not kept: a missing file may be mounted by the next question.
        let client = self.build(kind, which)?;
        Ok(kept().entry((kind, which)).or_insert(client).clone())
    }

    fn build(&self, kind: Kind, which: Addresses) -> Result<reqwest::Client, RegistryError> {
        install_provider();
        let tls = |text: String| RegistryError::Tls { registry: self.endpoint.authority(), source: Because::cause(text) };
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("pinion/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(self.limits.connect_timeout)
            .read_timeout(self.limits.read_timeout)
            .pool_max_idle_per_host(self.limits.concurrency)
            // One retry policy is enough, and ours is it.
            .retry(reqwest::retry::never())
            .dns_resolver(self.guard.resolver(which));
        builder = match kind {
            Kind::Plain => builder.tls_certs_only([]),
            Kind::Unverified => builder.tls_danger_accept_invalid_certs(true),
            Kind::Verified => builder.tls_certs_merge(self.authorities().map_err(tls)?),
        };
        builder.build().map_err(|error| RegistryError::Tls { registry: self.endpoint.authority(), source: Arc::new(error) })
    }

    /// The certificates that the operator adds to the system's.
    fn authorities(&self) -> Result<Vec<reqwest::Certificate>, String> {
        let mut all = Vec::new();
        if let Some(text) = &self.endpoint.ca_data {
            all.extend(certificates(text.as_bytes()).ok_or("`ca_data` holds no PEM certificate")?);
        }
        if let Some(path) = self.endpoint.certificates() {
            let bytes = std::fs::read(&path).map_err(|error| format!("could not read `{}`: {error}", path.display()))?;
            all.extend(certificates(&bytes).ok_or_else(|| format!("`{}` holds no PEM certificate", path.display()))?);
        }
        Ok(all)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Plain,
    Verified,
    /// For the registry's own host where the operator switched verification off.
    Unverified,
}

/// reqwest takes a text without any certificate for an empty list.
fn certificates(pem: &[u8]) -> Option<Vec<reqwest::Certificate>> {
    reqwest::Certificate::from_pem_bundle(pem).ok().filter(|all| !all.is_empty())
}

/// The title of a web page, in one line.
fn title(html: &str) -> Option<String> {
    // Lower case has the same length: only ASCII changes.
    let lower = html.to_ascii_lowercase();
    let open = lower.find("<title")?;
    let from = open + lower[open..].find('>')? + 1;
    let end = from + lower[from..].find("</title")?;
    let words: Vec<&str> = html[from..end].split_whitespace().collect();
    (!words.is_empty()).then(|| printable(&words.join(" ")))
}

/// Is this what servers answer who were asked in plain HTTP at a port with TLS? Go's, nginx's, and Apache's.
fn wants_tls(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(&body[..body.len().min(PAGE_HEAD)]);
    ["HTTP request to an HTTPS server", "HTTP request was sent to HTTPS port", "speaking plain HTTP to an SSL-enabled server"]
        .iter()
        .any(|words| text.contains(words))
}

/// Does this status pass by itself? The text says so.
fn passing(status: StatusCode) -> Option<String> {
    let passes = matches!(status.as_u16(), 408 | 429) || (status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED);
    passes.then(|| format!("it answered {}", status.as_u16()))
}

/// Reads a body up to its cap. Of an error's body, as much as a message needs.
async fn read(mut response: reqwest::Response, request: &Request, status: StatusCode) -> Result<Bytes, RegistryError> {
    let cap = if status.is_success() { request.cap } else { ERROR_BODY };
    let too_large = || RegistryError::TooLarge { registry: authority(&request.url), limit: size(cap) };
    if status.is_success()
        && request.method != Method::HEAD
        && response.content_length().is_some_and(|length| length > cap as u64)
    {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| classify(error, &request.url))? {
        if body.len() + chunk.len() > cap {
            if status.is_success() {
                return Err(too_large());
            }
            break;
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// A redirect that is not followed. The query is left out, for signed URLs hold a secret in it.
pub fn redirected(reply: &Reply, at: &Url) -> RegistryError {
    let location = reply.header("location").map_or("", |location| location.split('?').next().unwrap_or(location));
    RegistryError::Redirected { registry: authority(at), location: printable(location) }
}

/// A size for a message.
pub fn size(bytes: usize) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{bytes} bytes") }
}

/// Finds out what is under a failed request. The URL is left out, for signed ones hold a secret in their query.
fn classify(error: reqwest::Error, url: &Url) -> RegistryError {
    let registry = authority(url);
    let error = error.without_url();
    if let Some(&source) = cause::<Refusal>(&error) {
        return RegistryError::HostRefused { host: registry, source };
    }
    if let Some(tls) = cause::<rustls::Error>(&error) {
        // Text such as `HTTP/1.1 400` is no record of TLS.
        if matches!(tls, rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) {
            return RegistryError::PlainHttp { registry };
        }
        return RegistryError::Tls { registry, source: Arc::new(error) };
    }
    RegistryError::Unavailable { registry, source: Arc::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::Policy;

    /// A name of a private address is refused inside the connector, five layers below. `localhost` is such a name that needs no network.
    #[tokio::test]
    async fn a_refusal_while_connecting_is_found() {
        install_provider();
        let policy = Policy { cidrs: vec!["10.0.0.0/8".parse().expect("a range")], ..Policy::default() };
        let guard = Guard::new(Arc::new(policy), [], true);
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]);
        let url = Url::parse("http://localhost:1/v2/").expect("a url");
        let which = guard.check(&url).expect("a name for which the address decides");
        let client = client.dns_resolver(guard.resolver(which)).build().expect("a client");
        let error = client.get(url.clone()).send().await.expect_err("refused");
        let refused = classify(error, &url);
        assert!(matches!(refused, RegistryError::HostRefused { source: Refusal::PrivateAddress, .. }), "{refused:?}");
    }
}
