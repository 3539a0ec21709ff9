//! Small servers beside a peer: the token service it sends its clients to, and a front that makes it page.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::Query;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::SigningKey;
use rustls::{SignatureScheme, crypto};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::support::real_registry::{ACCOUNT, Peer, certificate};

/// Seconds that a token lives.
const LIFETIME: u64 = 300;

/// A server with a thread of its own; it ends when it is dropped.
#[derive(Debug)]
struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(router: Router) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("a listener can be so");
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                tokio::select! {
                    served = axum::serve(listener, router) => served.expect("it serves"),
                    _ = stopped => {}
                }
            });
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Gives tokens to [`ACCOUNT`], as Docker's [token specification] says: JSON web tokens, signed by the tests' server key, whose
/// certificate stands in them. The peer trusts the tests' authority.
///
/// [token specification]: https://distribution.github.io/distribution/spec/auth/jwt/
#[derive(Debug)]
pub struct TokenService {
    server: Server,
    issued: Arc<AtomicUsize>,
}

impl TokenService {
    pub fn start() -> Self {
        let issued = Arc::new(AtomicUsize::new(0));
        let signer = Arc::new(Signer::new());
        let counter = Arc::clone(&issued);
        let give = move |Query(query): Query<Vec<(String, String)>>, headers: HeaderMap| async move {
            let wanted = format!("Basic {}", BASE64_STANDARD.encode(ACCOUNT));
            if headers.get(header::AUTHORIZATION).is_none_or(|given| given.as_bytes() != wanted.as_bytes()) {
                return (StatusCode::UNAUTHORIZED, r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}"#)
                    .into_response();
            }
            counter.fetch_add(1, Ordering::SeqCst);
            let scopes = query.iter().filter(|(key, _)| key == "scope").flat_map(|(_, text)| text.split(' '));
            let token = signer.token(scopes.filter_map(access).collect());
            json!({ "token": token, "expires_in": LIFETIME }).to_string().into_response()
        };
        Self { server: Server::start(Router::new().route("/token", get(give))), issued }
    }

    /// Where it answers.
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.server.address)
    }

    /// How many tokens were given since this was asked last.
    pub fn issued(&self) -> usize {
        self.issued.swap(0, Ordering::SeqCst)
    }
}

/// `repository:team/app:pull,push` as the claim says it.
fn access(scope: &str) -> Option<Value> {
    let (kind, rest) = scope.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    Some(json!({ "type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>() }))
}

struct Signer {
    key: Arc<dyn SigningKey>,
    /// What is the same in every token.
    header: String,
    serial: AtomicU64,
}

impl Signer {
    fn new() -> Self {
        let key = PrivateKeyDer::from_pem_file(certificate("server.key")).expect("a key");
        let chain = CertificateDer::from_pem_file(certificate("server.pem")).expect("a certificate");
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [BASE64_STANDARD.encode(&chain)] });
        Self {
            key: crypto::ring::sign::any_ecdsa_type(&key).expect("an ECDSA key"),
            header: BASE64_URL_SAFE_NO_PAD.encode(header.to_string()),
            serial: AtomicU64::new(0),
        }
    }

    fn token(&self, access: Vec<Value>) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after the epoch").as_secs();
        let claims = json!({
            "iss": "tokens", "sub": "alice", "aud": "peer", "iat": now, "nbf": now - 10, "exp": now + LIFETIME,
            "jti": self.serial.fetch_add(1, Ordering::SeqCst).to_string(), "access": access,
        });
        let signed = format!("{}.{}", self.header, BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signer = self.key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).expect("a P-256 key");
        let signature = fixed(&signer.sign(signed.as_bytes()).expect("it signs"));
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

/// TLS writes an ECDSA signature as two numbers in DER, a web token as 64 bytes ([RFC 7518 §3.4]).
///
/// [RFC 7518 §3.4]: https://www.rfc-editor.org/rfc/rfc7518#section-3.4
fn fixed(der: &[u8]) -> Vec<u8> {
    let (mut rest, mut bytes) = (&der[2..], Vec::new());
    for _ in 0..2 {
        let (number, after) = rest[2..].split_at(rest[1].into());
        let digits = &number[number.len().saturating_sub(32)..];
        bytes.resize(bytes.len() + 32 - digits.len(), 0);
        bytes.extend(digits);
        rest = after;
    }
    bytes
}

/// Stands before a peer and asks it for pages of this size where the client asks for none, as registries behind it would do by
/// themselves.
#[derive(Debug)]
pub struct Front {
    server: Server,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Front {
    pub fn start(peer: &Peer, page: usize) -> Self {
        let _ = crypto::ring::default_provider().install_default();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, url, client) = (Arc::clone(&asked), peer.url(), reqwest::Client::new());
        let pass = move |uri: Uri| async move {
            let mut target = uri.to_string();
            log.lock().expect("a log").push(target.clone());
            if uri.path().ends_with("/tags/list") && !uri.query().unwrap_or_default().contains("n=") {
                target += if uri.query().is_some() { "&" } else { "?" };
                target += &format!("n={page}");
            }
            let reply = client.get(format!("{url}{target}")).send().await.expect("the peer answers");
            let mut response = Response::builder().status(reply.status());
            for name in [header::CONTENT_TYPE, header::LINK] {
                let value: Option<&HeaderValue> = reply.headers().get(&name);
                response = value.into_iter().fold(response, |response, value| response.header(&name, value));
            }
            response.body(Body::from(reply.bytes().await.expect("a body"))).expect("a response")
        };
        Self { server: Server::start(Router::new().fallback(pass)), asked }
    }

    pub fn host(&self) -> String {
        self.server.address.to_string()
    }

    /// Paths and queries, in order of arrival.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("a log").clone()
    }
}
