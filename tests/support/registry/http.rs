//! What the registry knows of HTTP: a request taken apart, the log's entry for it, and a reply before it becomes bytes on a wire.

use std::time::Instant;

use axum::body::Bytes;
use serde_json::{Value, json};

/// What a request is about. Faults and counts are per route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// `/v2/`.
    Ping,
    /// The token service, at the paths that registries use: `/token`, `/jwt/auth`, `/service/token`, `/v2/auth`, `/v2/token`, `/oauth2/token`.
    Token,
    /// `/v2/<repository>/tags/list`.
    Tags,
    /// Reading `/v2/<repository>/manifests/<tag or digest>`.
    Manifest,
    /// Reading `/v2/<repository>/blobs/<digest>`, or the same blob from storage, below `/objects/`.
    Blob,
    /// Uploading or deleting.
    Push,
    /// No address that this registry knows.
    Unknown,
    /// All of them.
    Any,
}

impl Route {
    pub(super) fn covers(self, other: Route) -> bool {
        self == Route::Any || self == other
    }
}

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Request {
    pub route: Route,
    pub method: String,
    /// The path as sent, not decoded.
    pub path: String,
    /// The query as sent, without its question mark; empty if there was none.
    pub query: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// All headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body of a token request; empty for all others.
    pub body: String,
    /// When it arrived.
    pub at: Instant,
}

impl Request {
    /// The value of the first header of this name, written in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// The decoded value of the first query parameter of this name.
    pub fn parameter(&self, name: &str) -> Option<String> {
        Form::read(&self.query).get(name).map(str::to_owned)
    }
}

/// The parts of an address below `/v2/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Ping,
    Token,
    Tags { repository: String },
    Manifest { repository: String, reference: String },
    Blob { repository: String, digest: String },
    Upload { repository: String, id: String },
    Object { digest: String },
    Unknown,
}

impl Address {
    /// Reads a path. A repository may have any number of parts, so the fixed ones are looked for from the end.
    pub(super) fn read(path: &str) -> Self {
        match path {
            "/v2/" | "/v2" => return Self::Ping,
            "/token" | "/jwt/auth" | "/service/token" | "/v2/auth" | "/v2/token" | "/oauth2/token" => return Self::Token,
            _ => {}
        }
        if let Some(digest) = path.strip_prefix("/objects/") {
            return Self::Object { digest: decode(digest) };
        }
        let Some(rest) = path.strip_prefix("/v2/") else { return Self::Unknown };
        let parts: Vec<String> = rest.split('/').map(decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let name = |parts: &[&str]| parts.join("/");
        match parts.as_slice() {
            [repository @ .., "tags", "list"] if !repository.is_empty() => Self::Tags { repository: name(repository) },
            [repository @ .., "blobs", "uploads"] if !repository.is_empty() => {
                Self::Upload { repository: name(repository), id: String::new() }
            }
            [repository @ .., "blobs", "uploads", id] if !repository.is_empty() => {
                Self::Upload { repository: name(repository), id: (*id).to_owned() }
            }
            [repository @ .., "manifests", reference] if !repository.is_empty() => {
                Self::Manifest { repository: name(repository), reference: (*reference).to_owned() }
            }
            [repository @ .., "blobs", digest] if !repository.is_empty() => {
                Self::Blob { repository: name(repository), digest: (*digest).to_owned() }
            }
            _ => Self::Unknown,
        }
    }

    pub(super) fn route(&self, method: &str) -> Route {
        let reads = matches!(method, "GET" | "HEAD");
        match self {
            Self::Ping => Route::Ping,
            Self::Token => Route::Token,
            Self::Tags { .. } if reads => Route::Tags,
            Self::Manifest { .. } if reads => Route::Manifest,
            Self::Blob { .. } | Self::Object { .. } if reads => Route::Blob,
            Self::Manifest { .. } | Self::Blob { .. } | Self::Upload { .. } => Route::Push,
            Self::Tags { .. } | Self::Object { .. } | Self::Unknown => Route::Unknown,
        }
    }

    pub(super) fn repository(&self) -> Option<&str> {
        match self {
            Self::Tags { repository }
            | Self::Manifest { repository, .. }
            | Self::Blob { repository, .. }
            | Self::Upload { repository, .. } => Some(repository),
            Self::Ping | Self::Token | Self::Object { .. } | Self::Unknown => None,
        }
    }
}

/// A request while it is answered.
pub(super) struct Call {
    pub(super) request: Request,
    pub(super) address: Address,
    pub(super) query: Form,
    pub(super) body: Bytes,
}

/// A query or a form: names and values in order, decoded.
#[derive(Clone, Debug, Default)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn read(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(&name.replace('+', " ")), decode(&value.replace('+', " ")))
        });
        Self(pairs.collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(given, _)| given == name).map(|(_, value)| value.as_str())
    }
}

/// A reply before faults are applied to it.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
}

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new() }
    }

    pub(super) fn json(status: u16, value: &Value) -> Self {
        Self::new(status).header("content-type", "application/json").body(value.to_string())
    }

    /// An error as the specification words it, in the section [error codes](https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#error-codes).
    pub(super) fn error(status: u16, code: &str, message: &str) -> Self {
        Self::json(status, &json!({ "errors": [{ "code": code, "message": message, "detail": null }] }))
    }

    pub(super) fn unknown_repository(repository: &str) -> Self {
        Self::error(404, "NAME_UNKNOWN", &format!("repository name not known to registry: {repository}"))
    }

    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(super) fn body(mut self, bytes: impl Into<Bytes>) -> Self {
        self.body = bytes.into();
        self
    }
}

/// Encodes all but the characters that RFC 3986 calls unreserved.
pub(super) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Decodes `%41`; what is not an escape stays as it is.
pub(super) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        match bytes[at..] {
            [b'%', high, low, ..] if let (Some(high), Some(low)) = (hex(high), hex(low)) => {
                decoded.push(high << 4 | low);
                at += 3;
            }
            [byte, ..] => {
                decoded.push(byte);
                at += 1;
            }
            [] => break,
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
