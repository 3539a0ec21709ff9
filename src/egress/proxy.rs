//! A proxy that connects only where the policy permits: the one way out of a sandbox with the profile *git*.
//!
//! It listens on a port of loopback for the time of one render and speaks HTTP/1.1: `CONNECT host:port` (TLS, and ssh by `pinion connect`),
//! requests in absolute form (plain http), and `SSH` for Git (see [`super::ssh`]). Each needs the token of this proxy, as `Proxy-Authorization: Basic`. Names are resolved
//! here, and the address that was checked is the one connected to. Where the environment names a proxy of the operator's, connections go
//! on through that one, and the name alone decides.

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::ssh::{self, Order, Ssh};
use super::{Policy, Refusal};
use crate::failure::chain;
use crate::image::printable;

/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// Headers of a request.
const MAX_HEADERS: usize = 100;

/// Connections at a time; the others wait.
const CONNECTIONS: usize = 64;

/// Time for a head to arrive, and for a connection to be made.
const PATIENCE: Duration = Duration::from_secs(15);

/// Longest time of one connection.
const LONGEST: Duration = Duration::from_secs(600);

/// Bytes that all connections of a render may bring.
pub const MAX_BYTES: u64 = 512 << 20;

/// Bytes that are passed on at a time.
const PIECE: usize = 64 << 10;

/// Refusals that are kept for a message.
const MAX_REFUSED: usize = 10;

/// A running proxy. It ends when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    policy: Arc<Policy>,
    /// What `Proxy-Authorization` must be, as a digest, so that the time of a comparison tells nothing.
    authorization: [u8; 32],
    refused: Mutex<Vec<(String, Refusal)>>,
    /// None: there is no ssh.
    ssh: Option<Arc<dyn Ssh>>,
    port: u16,
    url: String,
    /// Bytes that may still be brought.
    left: AtomicU64,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Starts a proxy on a free port of loopback. Without an `ssh`, Git has none.
    ///
    /// # Errors
    ///
    /// When no port can be opened.
    pub async fn start(policy: Arc<Policy>, ssh: Option<Arc<dyn Ssh>>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let token = token()?;
        let authorization = Sha256::digest(format!("Basic {}", STANDARD.encode(format!("pinion:{token}")))).into();
        let url = format!("http://pinion:{token}@127.0.0.1:{port}");
        let refused = Mutex::default();
        let shared = Arc::new(Shared { policy, authorization, refused, ssh, port, url, left: AtomicU64::new(MAX_BYTES) });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Ok(Self { port, shared, task })
    }

    /// The port of loopback that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address with the token, for `http_proxy` and its kin.
    pub fn url(&self) -> String {
        self.shared.url.clone()
    }

    /// Was more asked for than a render may fetch?
    pub fn is_used_up(&self) -> bool {
        self.shared.left.load(Ordering::Relaxed) == 0
    }

    /// What was asked for and may not be connected to, and why.
    pub fn refused(&self) -> Vec<(String, Refusal)> {
        self.shared.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// 128 random bits in hexadecimal.
fn token() -> io::Result<String> {
    let mut bytes = [0; 16];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let turns = Arc::new(Semaphore::new(CONNECTIONS));
    // Those that are open end with this.
    let mut open = JoinSet::new();
    loop {
        let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while open.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        open.spawn(async move {
            let _turn = turn;
            let _ = timeout(LONGEST, shared.serve(stream)).await;
        });
    }
}

/// What a client wants.
struct Wanted {
    host: String,
    port: u16,
    /// For a request in absolute form: its head as the server is to get it. None: a tunnel.
    head: Option<Vec<u8>>,
}

/// What a client asks.
enum Asked {
    Connection(Wanted),
    Ssh(Order),
}

/// Why a request is not served: status and text.
struct Answer(u16, String);

impl Shared {
    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let (asked, behind) = match timeout(PATIENCE, read(&mut stream, &self.authorization)).await {
            Ok(Ok(read)) => read,
            Ok(Err(answer)) => return refuse(&mut stream, &answer).await,
            Err(_) => return Ok(()),
        };
        let Wanted { host, port, head } = match asked {
            Asked::Connection(wanted) => wanted,
            Asked::Ssh(order) => return self.ssh(&mut stream, &order, &behind).await,
        };
        let mut server = match timeout(PATIENCE, self.connect(&host, port, head.is_none())).await {
            Ok(Ok(server)) => server,
            Ok(Err(answer)) => return refuse(&mut stream, &answer).await,
            Err(_) => return refuse(&mut stream, &Answer(504, format!("`{host}` does not answer"))).await,
        };
        match &head {
            Some(head) => server.write_all(head).await?,
            None => stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?,
        }
        server.write_all(&behind).await?;
        let (mut from_client, mut to_client) = stream.split();
        let (mut from_server, mut to_server) = server.split();
        // Each side is told when the other has ended.
        let up = async {
            let sent = tokio::io::copy(&mut from_client, &mut to_server).await;
            let _ = to_server.shutdown().await;
            sent.map(drop)
        };
        let down = async {
            let sent = self.bring(&mut from_server, &mut to_client).await;
            let _ = to_client.shutdown().await;
            sent
        };
        tokio::try_join!(up, down).map(drop)
    }

    /// Passes on what a server says, as long as the render may have it.
    async fn bring(&self, from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        loop {
            let count = from.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            let less = |left: u64| Some(left.saturating_sub(count as u64));
            let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).unwrap_or(0);
            if before <= count as u64 {
                tracing::warn!(bytes = MAX_BYTES, "a tool fetches more than a render may");
                return Err(io::Error::other("more than a render may fetch"));
            }
            to.write_all(&buffer[..count]).await?;
        }
    }

    /// Lets ssh fetch for Git.
    async fn ssh(&self, stream: &mut TcpStream, order: &Order, behind: &[u8]) -> io::Result<()> {
        let remote = match order.remote() {
            Ok(remote) => remote,
            Err(what) => {
                let what = printable(&what);
                tracing::warn!(what, "ssh is asked for something else than Git's fetching");
                return refuse(stream, &Answer(403, format!("ssh is for Git's fetching alone: {what}"))).await;
            }
        };
        let Some(ssh) = &self.ssh else { return refuse(stream, &Answer(403, "there is no ssh here".to_owned())).await };
        let session = match ssh.start(&remote, self.port, &self.url) {
            Ok(session) => session,
            Err(error) => return refuse(stream, &Answer(502, format!("ssh: {}", chain(&error)))).await,
        };
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
        // What it brings is counted where it connects.
        ssh::relay(stream, behind, session, MAX_BYTES).await
    }

    /// A connection to a host, or through the operator's own proxy.
    async fn connect(&self, host: &str, port: u16, is_tunnel: bool) -> Result<TcpStream, Answer> {
        let refused = |refusal: Refusal| {
            let authority = printable(&format!("{host}:{port}"));
            tracing::warn!(host = authority, reason = %refusal, "a tool may not connect there");
            let mut all = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() < MAX_REFUSED && all.iter().all(|(known, _)| *known != authority) {
                all.push((authority.clone(), refusal));
            }
            Answer(403, format!("`{authority}` may not be connected to: {refusal}"))
        };
        self.policy.check(host, port).map_err(refused)?;
        let scheme = if is_tunnel { "https" } else { "http" };
        let target = format!("{scheme}://{host}:{port}/").parse().map_err(|_| Answer(400, "no address".to_owned()))?;
        if let Some(upstream) = Matcher::from_env().intercept(&target) {
            // A name that only that proxy knows is left to its rules; an address that we know to be forbidden is not.
            match self.policy.resolve(host, port).await {
                Ok(_) | Err(Refusal::Unresolved) => {}
                Err(refusal) => return Err(refused(refusal)),
            }
            let authorization = upstream.basic_auth().map(|value| value.as_bytes().to_vec());
            return tunnel(&upstream.uri().to_string(), authorization, host, port)
                .await
                .map_err(|error| Answer(502, format!("the operator's proxy: {error}")));
        }
        let addresses = self.policy.resolve(host, port).await.map_err(refused)?;
        let connected = TcpStream::connect(addresses.as_slice()).await;
        connected.map_err(|error| Answer(502, format!("`{host}:{port}` cannot be connected to: {error}")))
    }
}

/// Reads a request's head and what came behind it.
async fn read(stream: &mut TcpStream, authorization: &[u8; 32]) -> Result<(Asked, Vec<u8>), Answer> {
    let wrong = |text: &str| Answer(400, text.to_owned());
    let mut bytes = Vec::new();
    let end = loop {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        if let Some(end) = end.filter(|end| *end <= MAX_HEAD) {
            break end;
        }
        if bytes.len() > MAX_HEAD {
            return Err(Answer(431, "the head is too long".to_owned()));
        }
        let count = stream.read_buf(&mut bytes).await.map_err(|_| wrong("broken off"))?;
        if count == 0 {
            return Err(wrong("broken off"));
        }
    };
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(&bytes[..end]).map_err(|_| wrong("not HTTP"))?;
    let (Some(method), Some(target)) = (request.method, request.path) else { return Err(wrong("not HTTP")) };
    let given = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("proxy-authorization"));
    if given.is_none_or(|given| <[u8; 32]>::from(Sha256::digest(given.value)) != *authorization) {
        return Err(Answer(407, "this proxy is for the tools of one render".to_owned()));
    }
    if method == "SSH" {
        let order = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(ssh::HEADER));
        let order = order.and_then(|order| STANDARD.decode(order.value).ok());
        let order = order.and_then(|order| serde_json::from_slice(&order).ok()).ok_or_else(|| wrong("no order"))?;
        return Ok((Asked::Ssh(order), bytes.split_off(end)));
    }
    let wanted = if method.eq_ignore_ascii_case("CONNECT") {
        let (host, port) = target.rsplit_once(':').ok_or_else(|| wrong("no port"))?;
        Wanted { host: host.to_owned(), port: port.parse().map_err(|_| wrong("no port"))?, head: None }
    } else {
        let url = Url::parse(target).ok().filter(|url| url.scheme() == "http").ok_or_else(|| wrong("not in absolute form"))?;
        let host = url.host_str().ok_or_else(|| wrong("no host"))?.to_owned();
        let port = url.port_or_known_default().unwrap_or(80);
        Wanted { head: Some(head(method, &url, request.headers)), host, port }
    };
    Ok((Asked::Connection(wanted), bytes.split_off(end)))
}

/// The head in the form that a server gets. One request a connection: the next one may be for another host.
fn head(method: &str, url: &Url, headers: &[httparse::Header<'_>]) -> Vec<u8> {
    const OWN: [&str; 5] = ["proxy-authorization", "proxy-connection", "connection", "keep-alive", "host"];
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let host = url.host_str().unwrap_or_default();
    let mut head = format!("{method} {}{query} HTTP/1.1\r\nHost: {host}{port}\r\nConnection: close\r\n", url.path()).into_bytes();
    for header in headers.iter().filter(|header| !OWN.iter().any(|own| header.name.eq_ignore_ascii_case(own))) {
        head.extend([header.name.as_bytes(), b": ", header.value, b"\r\n"].concat());
    }
    head.extend(b"\r\n");
    head
}

/// Connects through another proxy, which gets the name.
///
/// # Errors
///
/// When the proxy cannot be reached or refuses.
pub async fn tunnel(proxy: &str, authorization: Option<Vec<u8>>, host: &str, port: u16) -> io::Result<TcpStream> {
    let url = Url::parse(proxy).map_err(io::Error::other)?;
    if url.scheme() != "http" {
        return Err(io::Error::other(format!("a proxy by `{}` is not understood, only by http", url.scheme())));
    }
    let own = || {
        let user = format!("{}:{}", url.username(), url.password().unwrap_or_default());
        (user != ":").then(|| format!("Basic {}", STANDARD.encode(user)).into_bytes())
    };
    let host_of = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let mut stream = TcpStream::connect((host_of, url.port_or_known_default().unwrap_or(80))).await?;
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").into_bytes();
    if let Some(value) = authorization.or_else(own) {
        request.extend([b"Proxy-Authorization: ", value.as_slice(), b"\r\n"].concat());
    }
    request.extend(b"\r\n");
    stream.write_all(&request).await?;
    // Byte by byte, so that nothing of what follows is taken.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > MAX_HEAD {
            return Err(io::Error::other("its answer is too long"));
        }
        head.push(stream.read_u8().await?);
    }
    let first = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
    match first.split_whitespace().nth(1) {
        Some(status) if status.starts_with('2') => Ok(stream),
        _ => Err(io::Error::other(format!("it answered `{}`", printable(&first)))),
    }
}

async fn refuse(stream: &mut TcpStream, Answer(status, text): &Answer) -> io::Result<()> {
    let reason = match status {
        403 => "Forbidden",
        407 => "Proxy Authentication Required",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        504 => "Gateway Timeout",
        _ => "Bad Request",
    };
    let challenge = if *status == 407 { "Proxy-Authenticate: Basic realm=\"pinion\"\r\n" } else { "" };
    let answer = format!(
        "HTTP/1.1 {status} {reason}\r\n{challenge}Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}\n",
        text.len() + 1
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    /// A server on loopback that answers each connection with what it was sent.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut bytes = vec![0; 4096];
                    let count = stream.read(&mut bytes).await.unwrap_or(0);
                    let _ = stream.write_all(&bytes[..count]).await;
                });
            }
        });
        address
    }

    fn permitting(host: &str) -> Arc<Policy> {
        Arc::new(Policy { hosts: Some(vec![host.parse().expect("a host")]), ..Policy::default() })
    }

    async fn ask(proxy: &Proxy, request: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.expect("the proxy");
        stream.write_all(request.as_bytes()).await.expect("sent");
        stream.shutdown().await.expect("ended");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("received");
        answer
    }

    fn authorization(proxy: &Proxy) -> String {
        format!(
            "Proxy-Authorization: Basic {}\r\n",
            STANDARD.encode(proxy.url().trim_start_matches("http://").split('@').next().unwrap_or_default())
        )
    }

    #[tokio::test]
    async fn what_is_permitted_is_connected_in_both_forms() {
        let port = echo().await.port();
        let proxy = Proxy::start(permitting("localhost"), None).await.expect("a proxy");
        let own = authorization(&proxy);
        let tunnelled = ask(&proxy, &format!("CONNECT localhost:{port} HTTP/1.1\r\nHost: x\r\n{own}\r\nhello")).await;
        assert_eq!(tunnelled, "HTTP/1.1 200 Connection established\r\n\r\nhello");
        let asked = format!(
            "GET http://localhost:{port}/a?b=c HTTP/1.1\r\nHost: other\r\nX: y\r\nProxy-Connection: keep-alive\r\n{own}\r\n"
        );
        let sent = ask(&proxy, &asked).await;
        assert_eq!(sent, format!("GET /a?b=c HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\nX: y\r\n\r\n"));
        let stream = tunnel(&proxy.url(), None, "localhost", port).await;
        assert!(stream.is_ok());
        assert!(proxy.refused().is_empty());
    }

    #[tokio::test]
    async fn nothing_else_is() {
        let port = echo().await.port();
        let proxy = Proxy::start(Arc::default(), None).await.expect("a proxy");
        let own = authorization(&proxy);
        for (request, status) in [
            (format!("CONNECT localhost:{port} HTTP/1.1\r\n\r\n"), "407"),
            (format!("CONNECT localhost:{port} HTTP/1.1\r\nProxy-Authorization: Basic eDp5\r\n\r\n"), "407"),
            (format!("CONNECT localhost:{port} HTTP/1.1\r\n{own}\r\n"), "403"),
            (format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\n{own}\r\n"), "403"),
            (format!("CONNECT 127.1:{port} HTTP/1.1\r\n{own}\r\n"), "403"),
            (format!("CONNECT [::1]:{port} HTTP/1.1\r\n{own}\r\n"), "403"),
            (format!("GET http://127.0.0.1:{port}/ HTTP/1.1\r\n{own}\r\n"), "403"),
            (format!("GET http://2130706433:{port}/ HTTP/1.1\r\n{own}\r\n"), "403"),
            (format!("GET /a HTTP/1.1\r\nHost: localhost:{port}\r\n{own}\r\n"), "400"),
            (format!("GET https://localhost:{port}/ HTTP/1.1\r\n{own}\r\n"), "400"),
            (format!("CONNECT localhost HTTP/1.1\r\n{own}\r\n"), "400"),
            ("nonsense\r\n\r\n".to_owned(), "400"),
        ] {
            let answer = ask(&proxy, &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        }
        let refused = proxy.refused();
        assert_eq!(refused[0], (format!("localhost:{port}"), Refusal::LocalName));
        assert!(refused.len() >= 4, "{refused:?}");
        let long = format!("CONNECT localhost:1 HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD));
        assert!(ask(&proxy, &long).await.starts_with("HTTP/1.1 431 "));
    }

    #[tokio::test]
    async fn what_all_connections_bring_is_bounded() {
        let port = echo().await.port();
        let proxy = Proxy::start(permitting("localhost"), None).await.expect("a proxy");
        proxy.shared.left.store(12, Ordering::Relaxed);
        let own = authorization(&proxy);
        let request = format!("CONNECT localhost:{port} HTTP/1.1\r\n{own}\r\nhello");
        assert!(ask(&proxy, &request).await.ends_with("\r\n\r\nhello") && !proxy.is_used_up());
        assert!(ask(&proxy, &request).await.ends_with("hello"));
        assert!(ask(&proxy, &request).await.ends_with("\r\n\r\n") && proxy.is_used_up());
    }

    #[tokio::test]
    async fn it_ends_with_its_owner() {
        let proxy = Proxy::start(Arc::default(), None).await.expect("a proxy");
        let port = proxy.port();
        drop(proxy);
        for _ in 0..1000 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it listens on");
    }
}
