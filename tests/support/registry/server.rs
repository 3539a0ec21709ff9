//! The server: a thread that accepts connections, logs requests, lets them in, and spoils the answers.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Instant;
use std::{io, thread};

use axum::Router;
use axum::body::Body;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Request as HttpRequest, State as Extract};
use axum::http::Response;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::auth::Auth;
use super::content::Content;
use super::dialect::Dialect;
use super::fault::{Faults, deliver};
use super::http::{Address, Call, Form, Request, Route};
use super::lock;
use super::token::Tokens;

/// Largest body that is read, in bytes.
const MAX_BODY: usize = 1 << 30;

/// What outlives a stop of the server.
pub(super) struct State {
    pub(super) host: String,
    pub(super) content: Mutex<Content>,
    pub(super) settings: Mutex<Settings>,
    pub(super) tokens: Arc<Mutex<Tokens>>,
    pub(super) faults: Mutex<Faults>,
    pub(super) log: Mutex<Vec<Request>>,
    pub(super) connections: AtomicUsize,
    at_once: AtomicUsize,
    pub(super) most_at_once: AtomicUsize,
}

#[derive(Clone, Default)]
pub(super) struct Settings {
    pub(super) dialect: Dialect,
    pub(super) auth: Auth,
    /// The address and state of the registry that plays the blob storage.
    pub(super) storage: Option<(String, Arc<State>)>,
}

impl State {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            host: address.to_string(),
            content: Mutex::default(),
            settings: Mutex::default(),
            tokens: Arc::default(),
            faults: Mutex::default(),
            log: Mutex::default(),
            connections: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
        }
    }
}

/// A server that runs until it is dropped. Dropping waits until its port and connections are closed, which takes no request into account.
pub(super) struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(listener: std::net::TcpListener, state: Arc<State>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("fake registry".to_owned()).spawn(move || serve(listener, state, stopped));
        Self { stop: Some(stop), thread: Some(thread.expect("a thread can be started")) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves until the channel closes. The runtime's end drops the connections, which axum alone would let finish first.
fn serve(listener: std::net::TcpListener, state: Arc<State>, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    runtime.block_on(async {
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");
        let listener = TcpListener::from_std(listener).expect("a listening socket");
        let door = Door { listener, state: Arc::clone(&state) };
        let service = Router::new().fallback(handle).with_state(state).into_make_service_with_connect_info::<Cut>();
        tokio::select! {
            _ = async { axum::serve(door, service).await } => {}
            _ = stopped => {}
        }
    });
}

/// Accepts connections that a handler can cut.
struct Door {
    listener: TcpListener,
    state: Arc<State>,
}

impl Listener for Door {
    type Io = Line;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Line, SocketAddr) {
        loop {
            if let Ok((stream, peer)) = self.listener.accept().await {
                self.state.connections.fetch_add(1, Ordering::SeqCst);
                // Without this, a reply in small pieces waits for the client's delayed acknowledgements.
                let _ = stream.set_nodelay(true);
                return (Line { stream, cut: Cut::default() }, peer);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Set by a handler to have its connection closed before anything is written.
#[derive(Clone, Default)]
struct Cut(Arc<AtomicBool>);

impl Connected<IncomingStream<'_, Door>> for Cut {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        stream.io().cut.clone()
    }
}

/// A connection that fails to write once it is cut.
struct Line {
    stream: TcpStream,
    cut: Cut,
}

impl Line {
    fn check(&self) -> io::Result<()> {
        if self.cut.0.load(Ordering::SeqCst) { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Counts a request as being answered until it is dropped.
struct Answering<'a>(&'a State);

impl<'a> Answering<'a> {
    fn begin(state: &'a State) -> Self {
        let now = state.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        state.most_at_once.fetch_max(now, Ordering::SeqCst);
        Self(state)
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn handle(Extract(state): Extract<Arc<State>>, ConnectInfo(cut): ConnectInfo<Cut>, request: HttpRequest) -> Response<Body> {
    let _answering = Answering::begin(&state);
    let call = receive(&state, request).await;
    let settings = lock(&state.settings).clone();
    let route = call.request.route;
    let admitted = match (route, &call.address) {
        (Route::Token, _) | (_, Address::Object { .. }) => Ok(()),
        _ => settings.auth.admit(&state.host, &state.tokens, &call),
    };
    let faults = match (&admitted, route) {
        (Err(_), route) if route != Route::Ping => Vec::new(),
        _ => lock(&state.faults).strike(route, &call.request.path),
    };
    let answer = || match admitted {
        Ok(()) => state.answer(&settings, &call),
        Err(refusal) => refusal,
    };
    let answer = || match call.address {
        Address::Token | Address::Object { .. } | Address::Unknown => answer(),
        _ => {
            let mut reply = answer().header("docker-distribution-api-version", "registry/2.0");
            reply.headers.extend(settings.dialect.headers.iter().cloned());
            reply
        }
    };
    match deliver(faults, &call, &state.host, &settings.dialect, answer).await {
        Some(response) => response,
        None => {
            cut.0.store(true, Ordering::SeqCst);
            Response::new(Body::empty())
        }
    }
}

/// Takes a request apart and logs it: before its body is read, so that the log has it as soon as it has come.
async fn receive(state: &State, request: HttpRequest) -> Call {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let method = parts.method.as_str().to_owned();
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let headers = parts.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes()))).collect();
    let address = Address::read(&path);
    let route = address.route(&method);
    let form = Form::read(&query);
    let authorization = parts.headers.get("authorization").map(|value| text(value.as_bytes()));
    let mut request = Request { route, method, path, query, authorization, headers, body: String::new(), at: Instant::now() };
    let bytes = async { axum::body::to_bytes(body, MAX_BODY).await.unwrap_or_default() };
    let body = if route == Route::Token {
        let bytes = bytes.await;
        request.body = text(&bytes);
        lock(&state.log).push(request.clone());
        bytes
    } else {
        lock(&state.log).push(request.clone());
        bytes.await
    };
    Call { request, address, query: form, body }
}
