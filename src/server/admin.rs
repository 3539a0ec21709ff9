//! The admin port: health, metrics and pins over HTTP/1.1.
//!
//! Anybody in the cluster can connect to it, so connections are bounded: a request's head must arrive within 10 s, also the next one on a
//! connection that stays open; at most 128 connections are open, and at most 32 from one address. One more closes the oldest of that address,
//! or the oldest of all, so that a new scrape always gets through.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tower::ServiceExt;

use super::metrics::Metrics;
use super::pin_report::{PinReport, is_token};

/// The media type of the metrics.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Time for the head of a request, the idle time before it included.
const HEAD: Duration = Duration::from_secs(10);

/// Longest time of one connection.
const LONGEST: Duration = Duration::from_secs(300);

/// Open connections.
const CONNECTIONS: usize = 128;

/// Open connections from one address.
const PER_ADDRESS: usize = 32;

/// What the admin port answers with.
pub struct Admin {
    /// The plugin socket: without it the server is not ready.
    pub socket: std::path::PathBuf,
    pub metrics: Arc<Metrics>,
    pub report: Arc<PinReport>,
    /// Opens `/api` to other addresses than loopback.
    pub token: Option<String>,
}

impl Admin {
    /// Answers until the task is aborted.
    pub async fn serve(self, listener: TcpListener) {
        let router = self.router();
        let open = Open::default();
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, for example: connections that time out free some.
                    tracing::debug!(%error, "a connection to the admin port was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let task = tokio::spawn(tokio::time::timeout(LONGEST, connection(stream, peer, router.clone())));
            open.add(peer.ip(), task.abort_handle());
        }
    }

    fn router(self) -> Router {
        let Self { socket, metrics, report, token } = self;
        Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(move || async move { ready(&socket) }))
            .route("/metrics", get(move || async move { ([(CONTENT_TYPE, OPENMETRICS)], metrics.text()) }))
            .route("/api/v1/pins", get(move |peer, headers| async move { pins(&report, token.as_deref(), peer, &headers) }))
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router) {
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request.map(Body::new)).await.into_response()) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(64)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::trace!(%error, "a connection to the admin port ended");
    }
}

/// Open connections, the oldest first.
#[derive(Default)]
struct Open(Mutex<Vec<(IpAddr, AbortHandle)>>);

impl Open {
    /// Adds a connection. Past a bound it closes the oldest.
    fn add(&self, address: IpAddr, handle: AbortHandle) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, handle)| !handle.is_finished());
        let is_same = |other: &(IpAddr, AbortHandle)| other.0 == address;
        let oldest = if open.iter().filter(|other| is_same(other)).count() >= PER_ADDRESS {
            open.iter().position(is_same)
        } else {
            (open.len() >= CONNECTIONS).then_some(0)
        };
        if let Some(oldest) = oldest {
            open.remove(oldest).1.abort();
        }
        open.push((address, handle));
    }
}

/// Can Argo CD reach us? Not when somebody removed the socket.
fn ready(socket: &Path) -> (StatusCode, &'static str) {
    if socket.exists() { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "the plugin socket is gone\n") }
}

/// Is the name that was asked one of this machine? Another one was bent to it by whoever owns that name.
fn is_asked_by_loopback(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = host
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
        .map_or_else(|| host.split_once(':').map_or(host, |(name, _)| name), |(name, _)| name);
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The pins, for loopback or with the token.
fn pins(report: &PinReport, token: Option<&str>, ConnectInfo(peer): ConnectInfo<SocketAddr>, headers: &HeaderMap) -> Response {
    let header = headers.get(AUTHORIZATION).and_then(|header| header.to_str().ok());
    if (peer.ip().is_loopback() && is_asked_by_loopback(headers)) || is_token(header, token) {
        ([(CONTENT_TYPE, "application/json")], report.json()).into_response()
    } else {
        (StatusCode::UNAUTHORIZED, "a token is required unless the request comes from loopback for `localhost`: set PINION_API_TOKEN and send it as `Authorization: Bearer …`\n")
            .into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine_are_known() {
        let by = |host: &str| is_asked_by_loopback(&HeaderMap::from_iter([(HOST, host.parse().expect("a header"))]));
        assert!(["localhost", "LOCALHOST:8080", "127.0.0.1:1", "127.1.2.3", "[::1]:80", "[::1]"].into_iter().all(by));
        assert!(
            !["evil.example", "evil.example:8080", "10.0.0.1", "localhost.evil.example", "[::2]:1", "", "::1"]
                .into_iter()
                .any(by)
        );
        assert!(!is_asked_by_loopback(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn one_connection_more_closes_the_oldest_of_its_address() {
        let open = Open::default();
        let task = || tokio::spawn(std::future::pending::<()>());
        let mut tasks = Vec::new();
        let mut add = |last: u8| {
            tasks.push(task());
            open.add(IpAddr::from([10, 0, 0, last]), tasks.last().expect("one").abort_handle());
        };
        add(1);
        (0..PER_ADDRESS).for_each(|_| add(2));
        add(2);
        (3..).take(CONNECTIONS - PER_ADDRESS - 1).for_each(&mut add);
        add(200);
        tokio::task::yield_now().await;
        let ended: Vec<usize> = (0..tasks.len()).filter(|index| tasks[*index].is_finished()).collect();
        assert_eq!(ended, [0, 1], "the oldest of address 2, then the oldest of all");
    }
}
