//! Who may do what: open doors, Basic credentials, or bearer tokens with a token service.
//!
//! The token service follows Docker's [token specification] and [OAuth2 specification]; the quirks that can be switched on are those of
//! `registries.md` §1.2 and §5. Tokens are opaque texts, never the same twice, and know which repositories they open.
//!
//! [token specification]: https://distribution.github.io/distribution/spec/auth/token/
//! [OAuth2 specification]: https://distribution.github.io/distribution/spec/auth/oauth/

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::http::{Call, Reply, Route};
use super::token::{Scope, Tokens};
use super::{FakeRegistry, lock};

/// What a registry asks of its clients.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    /// Nothing.
    #[default]
    Open,
    /// `Authorization: Basic` with this user and password.
    Basic { user: String, password: String },
    /// `Authorization: Bearer` with a token from a token service.
    Bearer(Box<Bearer>),
}

impl Auth {
    pub fn basic(user: &str, password: &str) -> Self {
        Self::Basic { user: user.to_owned(), password: password.to_owned() }
    }
}

impl From<Bearer> for Auth {
    fn from(bearer: Bearer) -> Self {
        Self::Bearer(Box::new(bearer))
    }
}

/// What the token service gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenText {
    /// A token.
    Opaque,
    /// A token with a line break and a header after it.
    Newline,
    /// An empty token.
    Empty,
    /// A reply without a token.
    Missing,
}

/// Bearer authentication. Without further calls: one account, no anonymous pulls, tokens of 300 seconds from `/token` on the same host.
#[derive(Clone, Debug)]
pub struct Bearer {
    pub(super) accounts: Vec<Account>,
    pub(super) anonymous: bool,
    pub(super) hollow: bool,
    pub(super) expires_in: Option<u64>,
    pub(super) issued_at: Option<String>,
    realm: Option<String>,
    service: Option<String>,
    issuer: Option<Arc<Mutex<Tokens>>>,
    pub(super) identity_token: Option<String>,
    before: Vec<String>,
    one_line: bool,
    dummy_scope: bool,
    challenge: Option<String>,
    pub(super) token: TokenText,
    pub(super) access_token_only: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) user: String,
    pub(super) password: String,
    /// What the names of its repositories begin with.
    prefix: String,
}

impl Bearer {
    /// One account that may pull and push everything.
    pub fn new(user: &str, password: &str) -> Self {
        let account = Account { user: user.to_owned(), password: password.to_owned(), prefix: String::new() };
        Self {
            accounts: vec![account],
            anonymous: false,
            hollow: false,
            expires_in: Some(300),
            issued_at: None,
            realm: None,
            service: None,
            issuer: None,
            identity_token: None,
            before: Vec::new(),
            one_line: false,
            dummy_scope: false,
            challenge: None,
            token: TokenText::Opaque,
            access_token_only: false,
        }
    }

    /// Adds an account for repositories whose names begin with `prefix`, for tests of who sees what.
    #[must_use]
    pub fn account(mut self, user: &str, password: &str, prefix: &str) -> Self {
        self.accounts.push(Account { user: user.to_owned(), password: password.to_owned(), prefix: prefix.to_owned() });
        self
    }

    /// Gives tokens for pulling to everybody, as public registries do.
    #[must_use]
    pub fn anonymous_pull(mut self) -> Self {
        self.anonymous = true;
        self
    }

    /// Answers a request for too much with a token that opens nothing in place of 401, as Docker Hub does for private repositories.
    #[must_use]
    pub fn hollow_tokens(mut self) -> Self {
        self.hollow = true;
        self
    }

    /// Lets tokens live this long, in seconds, and says so. [`None`] says nothing, as GHCR does; they live 60 seconds then.
    #[must_use]
    pub fn expires_in(mut self, seconds: impl Into<Option<u64>>) -> Self {
        self.expires_in = seconds.into();
        self
    }

    /// Sends this `issued_at`.
    #[must_use]
    pub fn issued_at(mut self, time: &str) -> Self {
        self.issued_at = Some(time.to_owned());
        self
    }

    /// Names this address as the token service, wherever it is. Tokens from elsewhere are not accepted: see [`Bearer::issued_by`].
    #[must_use]
    pub fn realm(mut self, url: impl Into<String>) -> Self {
        self.realm = Some(url.into());
        self
    }

    /// Takes `/token` of another registry as the token service and trusts its tokens, as Docker Hub does with `auth.docker.io`. The
    /// other registry must have a [`Bearer`] with the same accounts.
    #[must_use]
    pub fn issued_by(mut self, other: &FakeRegistry) -> Self {
        self.realm = Some(format!("{}/token", other.url()));
        self.issuer = Some(Arc::clone(&other.0.state.tokens));
        self
    }

    /// Names this service in the challenge; without it, the registry's host.
    #[must_use]
    pub fn service(mut self, name: &str) -> Self {
        self.service = Some(name.to_owned());
        self
    }

    /// Takes this identity token in `POST` requests with `grant_type=refresh_token`, in the name of the first account.
    #[must_use]
    pub fn identity_token(mut self, token: &str) -> Self {
        self.identity_token = Some(token.to_owned());
        self
    }

    /// Sends this `WWW-Authenticate` line before the bearer challenge, such as `Negotiate` or `Basic realm="x"`.
    #[must_use]
    pub fn after_challenge(mut self, line: &str) -> Self {
        self.before.push(line.to_owned());
        self
    }

    /// Sends all challenges in one line, with commas, which RFC 9110 §11.6.1 allows.
    #[must_use]
    pub fn one_line(mut self) -> Self {
        self.one_line = true;
        self
    }

    /// Names `repository:user/image:pull` in the challenge of `/v2/`, as GHCR does; a client must ask for its own repository.
    #[must_use]
    pub fn dummy_scope(mut self) -> Self {
        self.dummy_scope = true;
        self
    }

    /// Sends this in place of the bearer challenge, however malformed.
    #[must_use]
    pub fn challenge(mut self, line: &str) -> Self {
        self.challenge = Some(line.to_owned());
        self
    }

    #[must_use]
    pub fn token(mut self, token: TokenText) -> Self {
        self.token = token;
        self
    }

    /// Sends the token as `access_token` only, as ACR does, and not as `token` too.
    #[must_use]
    pub fn access_token_only(mut self) -> Self {
        self.access_token_only = true;
        self
    }

    /// What is granted of these scopes to whoever holds this account, or to nobody in particular.
    pub(super) fn granted(&self, scopes: &[Scope], account: Option<&Account>) -> Vec<Scope> {
        let mut granted = Vec::new();
        for scope in scopes {
            let mut scope = scope.clone();
            match account {
                Some(account) if scope.repository.starts_with(&account.prefix) => {}
                _ if self.anonymous => scope.push = false,
                _ => continue,
            }
            granted.push(scope);
        }
        granted
    }

    fn challenges(&self, host: &str, route: Route, repository: Option<&str>, error: Option<&str>) -> Vec<String> {
        let mut lines = self.before.clone();
        let realm = self.realm.clone().unwrap_or_else(|| format!("http://{host}/token"));
        let mut line = format!("Bearer realm=\"{realm}\",service=\"{}\"", self.service.as_deref().unwrap_or(host));
        let actions = if route == Route::Push { "pull,push" } else { "pull" };
        match repository {
            Some(repository) => line.push_str(&format!(",scope=\"repository:{repository}:{actions}\"")),
            None if self.dummy_scope => line.push_str(",scope=\"repository:user/image:pull\""),
            None => {}
        }
        if let Some(error) = error {
            line.push_str(&format!(",error=\"{error}\""));
        }
        lines.push(self.challenge.clone().unwrap_or(line));
        if self.one_line { vec![lines.join(", ")] } else { lines }
    }
}

impl Auth {
    /// Lets a request in, or answers 401 with what would let it in.
    pub(super) fn admit(&self, host: &str, tokens: &Mutex<Tokens>, call: &Call) -> Result<(), Reply> {
        let header = call.request.authorization.as_deref();
        let (route, repository) = (call.request.route, call.address.repository());
        let challenges = match self {
            Self::Open => return Ok(()),
            Self::Basic { user, password } => {
                if header.and_then(read_basic).is_some_and(|given| (&given.0, &given.1) == (user, password)) {
                    return Ok(());
                }
                vec!["Basic realm=\"fake registry\"".to_owned()]
            }
            Self::Bearer(bearer) => {
                let error = match header.and_then(|header| strip_scheme(header, "bearer")) {
                    None => None,
                    Some(token) => match lock(bearer.issuer.as_deref().unwrap_or(tokens)).check(token, route, repository) {
                        Ok(()) => return Ok(()),
                        Err(error) => Some(error),
                    },
                };
                bearer.challenges(host, route, repository, error)
            }
        };
        let refusal = Reply::error(401, "UNAUTHORIZED", "authentication required");
        Err(challenges.into_iter().fold(refusal, |reply, challenge| reply.header("www-authenticate", challenge)))
    }
}

/// User and password of a `Basic` header.
pub(super) fn read_basic(header: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(strip_scheme(header, "basic")?).ok()?).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

/// What follows an authentication scheme, whose name may be in either case (RFC 9110 §11.1).
fn strip_scheme<'a>(header: &'a str, scheme: &str) -> Option<&'a str> {
    let (name, rest) = header.split_once(' ')?;
    name.eq_ignore_ascii_case(scheme).then(|| rest.trim())
}
