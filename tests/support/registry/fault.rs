//! What goes wrong: statuses, slowness, broken connections, and replies that no honest registry sends.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use futures::stream;
use serde_json::json;

use super::dialect::Dialect;
use super::http::{Call, Reply, Route};

/// Which of the requests that a fault is about it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Always,
    /// The first so many.
    Times(usize),
    /// All but the first so many: `After(1)` fails from the second page on.
    After(usize),
    /// The one of this number, counted from 1.
    Only(usize),
}

/// The cursor of pages that never end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// Each page has new tags and a new cursor.
    New,
    /// Each page has the same tags and leads to itself.
    Same,
}

/// Holds requests until a test lets them go, however long that takes.
#[derive(Clone, Debug)]
pub struct Gate(tokio::sync::watch::Sender<bool>);

impl Default for Gate {
    fn default() -> Self {
        Self(tokio::sync::watch::Sender::new(false))
    }
}

impl Gate {
    /// Lets all requests go, those that come later too.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn passed(&self) {
        // The sender is ours, so that this ends only when the gate is open.
        let _ = self.0.subscribe().wait_for(|is_open| *is_open).await;
    }
}

/// Something that goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers with this status, these headers and this body.
    Status { status: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    /// Never answers, and keeps the connection open.
    Hang,
    /// Closes the connection without a byte of an answer.
    Drop,
    /// Waits before it answers.
    SlowHeaders(Duration),
    /// Waits until the gate is opened, and answers then.
    Held(Gate),
    /// Sends the body in chunks of so many bytes with a wait before each.
    SlowBody { chunk: usize, every: Duration },
    /// Promises the whole body, sends half of it and closes the connection.
    Truncated,
    /// Sends a body without end.
    EndlessBody,
    /// Sends page after page of tags, each with a `Link` (or, in a dialect without, simply full).
    EndlessPages(Cursor),
    /// Answers with this status and `Location`, in which `{path}` stands for the path and query that were asked for.
    Redirect { status: u16, location: String },
    /// Sets a header of the right answer to this value, a false digest for example.
    Header { name: String, value: String },
    /// Changes one digit of the body, so that it is still JSON but no longer what its digest says.
    Corrupted,
}

impl Fault {
    /// This status with an error body as the specification words it.
    pub fn status(status: u16) -> Self {
        let (code, message) = match status {
            401 => ("UNAUTHORIZED", "authentication required"),
            403 => ("DENIED", "requested access to the resource is denied"),
            404 => ("NAME_UNKNOWN", "repository name not known to registry"),
            429 => ("TOOMANYREQUESTS", "too many requests"),
            _ => ("UNKNOWN", "unknown error"),
        };
        Self::answer(status, &json!({ "errors": [{ "code": code, "message": message }] }).to_string())
    }

    /// This status with a JSON body.
    pub fn answer(status: u16, body: &str) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self::Status { status, headers, body: body.as_bytes().to_vec() }
    }

    /// 429 with this `Retry-After`: seconds, a date, or nonsense.
    pub fn too_many_requests(retry_after: &str) -> Self {
        Self::status(429).with_header("retry-after", retry_after)
    }

    /// 200 with a body that is not JSON.
    pub fn garbage() -> Self {
        Self::answer(200, "<html><body>It works!</body></html>")
    }

    /// A temporary redirect to this address.
    pub fn redirect(location: impl Into<String>) -> Self {
        Self::Redirect { status: 307, location: location.into() }
    }

    /// A `Docker-Content-Digest` that is not the manifest's.
    pub fn wrong_digest() -> Self {
        Self::digest(&format!("sha256:{}", "0".repeat(64)))
    }

    /// This text as `Docker-Content-Digest`.
    pub fn digest(text: &str) -> Self {
        Self::Header { name: "docker-content-digest".to_owned(), value: text.to_owned() }
    }

    /// Adds a header to a [`Fault::Status`].
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        if let Self::Status { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// The route that a fault is about if nothing else is said.
    pub fn route(&self) -> Route {
        match self {
            Self::EndlessPages(_) | Self::EndlessBody => Route::Tags,
            Self::Header { .. } | Self::Corrupted => Route::Manifest,
            _ => Route::Any,
        }
    }
}

/// What a fault is about.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Route(Route),
    /// The end of a path.
    Path(String),
}

/// The faults that were added, each with the number of requests it was about.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Planned>);

#[derive(Debug)]
struct Planned {
    target: Target,
    when: When,
    fault: Fault,
    seen: usize,
}

impl Faults {
    pub(super) fn add(&mut self, target: Target, when: When, fault: Fault) {
        self.0.push(Planned { target, when, fault, seen: 0 });
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Counts a request and returns the faults that strike it.
    pub(super) fn strike(&mut self, route: Route, path: &str) -> Vec<Fault> {
        let mut struck = Vec::new();
        for planned in &mut self.0 {
            let concerned = match &planned.target {
                Target::Route(target) => target.covers(route),
                Target::Path(end) => path.ends_with(end.as_str()),
            };
            if !concerned {
                continue;
            }
            planned.seen += 1;
            let strikes = match planned.when {
                When::Always => true,
                When::Times(n) => planned.seen <= n,
                When::After(n) => planned.seen > n,
                When::Only(n) => planned.seen == n,
            };
            if strikes {
                struck.push(planned.fault.clone());
            }
        }
        struck
    }
}

/// How the body of a reply is sent.
enum Delivery {
    Whole,
    Slow { chunk: usize, every: Duration },
    Truncated,
    Endless,
}

/// Applies faults to the reply that the registry would give. [`None`] is to be answered by closing the connection.
pub(super) async fn deliver(
    faults: Vec<Fault>,
    call: &Call,
    host: &str,
    dialect: &Dialect,
    answer: impl FnOnce() -> Reply,
) -> Option<Response<Body>> {
    let mut replaced: Option<Reply> = None;
    for fault in &faults {
        let reply = match fault {
            Fault::SlowHeaders(time) => {
                tokio::time::sleep(*time).await;
                continue;
            }
            Fault::Held(gate) => {
                gate.passed().await;
                continue;
            }
            Fault::Hang => std::future::pending().await,
            Fault::Drop => return None,
            Fault::Status { status, headers, body } => {
                Reply { status: *status, headers: headers.clone(), body: body.clone().into() }
            }
            Fault::Redirect { status, location } => {
                let path = match call.request.query.as_str() {
                    "" => call.request.path.clone(),
                    query => format!("{}?{query}", call.request.path),
                };
                Reply::new(*status).header("location", location.replace("{path}", &path))
            }
            Fault::EndlessPages(cursor) => endless_page(*cursor, call, host, dialect),
            _ => continue,
        };
        replaced.get_or_insert(reply);
    }
    let mut reply = replaced.unwrap_or_else(answer);
    let mut delivery = Delivery::Whole;
    for fault in faults {
        match fault {
            Fault::Header { name, value } => {
                reply.headers.retain(|(given, _)| !given.eq_ignore_ascii_case(&name));
                reply.headers.push((name, value));
            }
            Fault::Corrupted => reply.body = corrupt(&reply.body),
            Fault::SlowBody { chunk, every } => delivery = Delivery::Slow { chunk, every },
            Fault::Truncated => delivery = Delivery::Truncated,
            Fault::EndlessBody => delivery = Delivery::Endless,
            _ => {}
        }
    }
    Some(write(reply, delivery, call))
}

fn write(reply: Reply, delivery: Delivery, call: &Call) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in &reply.headers {
        // What is not legal in a header cannot be sent by an attacker either.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_bytes())) {
            response.headers_mut().append(name, value);
        }
    }
    let bodiless = matches!(reply.status, 100..=199 | 204 | 304);
    let length = HeaderValue::from(reply.body.len());
    if !bodiless && !matches!(delivery, Delivery::Endless) {
        response.headers_mut().insert("content-length", length);
    }
    if bodiless || call.request.method == "HEAD" {
        return response;
    }
    *response.body_mut() = match delivery {
        Delivery::Whole => Body::from(reply.body),
        Delivery::Slow { chunk, every } => slow(reply.body, chunk.max(1), every),
        Delivery::Truncated => truncated(&reply.body),
        Delivery::Endless => endless(call.request.route),
    };
    response
}

fn slow(bytes: Bytes, chunk: usize, every: Duration) -> Body {
    Body::from_stream(stream::unfold(bytes, move |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        tokio::time::sleep(every).await;
        let next = rest.split_to(chunk.min(rest.len()));
        Some((Ok::<_, Infallible>(next), rest))
    }))
}

/// A body that fails makes the server close the connection, short of the promised length.
fn truncated(bytes: &Bytes) -> Body {
    let half = bytes.slice(..bytes.len() / 2);
    Body::from_stream(stream::unfold(Some(half), |half| async move {
        let half = half?;
        // The half is on its way before the failure: both at once would be dropped together.
        tokio::time::sleep(Duration::from_millis(20)).await;
        if half.is_empty() { Some((Err(io::Error::other("truncated")), None)) } else { Some((Ok(half), Some(Bytes::new()))) }
    }))
}

/// JSON that goes on for ever: tags, or a token, or white space.
fn endless(route: Route) -> Body {
    let (head, repeated) = match route {
        Route::Tags => ("{\"name\":\"endless\",\"tags\":[\"0\"", ",\"1.0.0\""),
        Route::Token => ("{\"token\":\"", "a"),
        _ => ("{", "        "),
    };
    let chunk = Bytes::from(repeated.repeat(64 * 1024 / repeated.len()));
    Body::from_stream(stream::unfold(Bytes::from_static(head.as_bytes()), move |next| {
        let chunk = chunk.clone();
        async move { Some((Ok::<_, Infallible>(next), chunk)) }
    }))
}

/// A full page of tags. New cursors count up; the same one leads to its own page.
fn endless_page(cursor: Cursor, call: &Call, host: &str, dialect: &Dialect) -> Reply {
    let size = call.query.get("n").and_then(|n| n.parse::<usize>().ok()).unwrap_or(100).clamp(1, 1000);
    let after = call.query.get("last").or_else(|| call.query.get("next_page"));
    let start = match (cursor, after) {
        (Cursor::New, Some(last)) => {
            last.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().map_or(0, |last: usize| last.saturating_add(1))
        }
        _ => 0,
    };
    let tags: Vec<String> = (start..start.saturating_add(size)).map(|at| format!("endless-{at:012}")).collect();
    let name = call.address.repository().unwrap_or_default();
    let reply = Reply::json(200, &json!({ "name": name, "tags": tags }));
    let last = tags.last().map_or("", String::as_str);
    match dialect.next(host, name, last, size, start.saturating_add(size)) {
        Some(link) => reply.header("link", link),
        None => reply,
    }
}

/// Changes the last digit. Digits stand in numbers and texts, so JSON stays JSON.
fn corrupt(bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    if let Some(digit) = bytes.iter_mut().rev().find(|byte| byte.is_ascii_digit()) {
        *digit = b'0' + (*digit - b'0' + 1) % 10;
    }
    bytes.into()
}
