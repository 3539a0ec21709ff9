//! The token service: it issues tokens, remembers what each opens, and forgets them when told to.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::auth::{Auth, Bearer, TokenText, read_basic};
use super::http::{Call, Form, Reply, Route};
use super::lock;

/// How long a token lives if the reply does not say, in seconds (the [token specification], `expires_in`).
///
/// [token specification]: https://distribution.github.io/distribution/spec/auth/token/
const DEFAULT_LIFETIME: u64 = 60;

/// What a token opens: a repository, for pulling and perhaps for pushing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) repository: String,
    pub(super) push: bool,
}

impl Scope {
    /// Reads `repository:acme/web:pull,push`. Scopes of other kinds open nothing.
    fn read(text: &str) -> Option<Self> {
        let (repository, actions) = text.strip_prefix("repository:")?.rsplit_once(':')?;
        Some(Self { repository: repository.to_owned(), push: actions.split(',').any(|action| action == "push" || action == "*") })
    }
}

/// The tokens that a registry has issued.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    valid: HashMap<String, Token>,
    issued: u64,
}

#[derive(Debug)]
struct Token {
    scopes: Vec<Scope>,
    /// [`None`] is later than the clock can tell.
    expires: Option<Instant>,
}

impl Tokens {
    pub(super) fn revoke(&mut self) {
        self.valid.clear();
    }

    fn issue(&mut self, scopes: Vec<Scope>, lifetime: Duration) -> String {
        self.issued += 1;
        let text = format!("fake-token-{:04}-{}", self.issued, STANDARD.encode(format!("{scopes:?}")).trim_end_matches('='));
        self.valid.insert(text.clone(), Token { scopes, expires: Instant::now().checked_add(lifetime) });
        text
    }

    /// Does this token open the route of the repository? The error is what the challenge names.
    pub(super) fn check(&self, token: &str, route: Route, repository: Option<&str>) -> Result<(), &'static str> {
        let token = self
            .valid
            .get(token)
            .filter(|token| token.expires.is_none_or(|expires| Instant::now() < expires))
            .ok_or("invalid_token")?;
        let Some(repository) = repository else { return Ok(()) };
        let opens = |scope: &Scope| scope.repository == repository && (scope.push || route != Route::Push);
        if token.scopes.iter().any(opens) { Ok(()) } else { Err("insufficient_scope") }
    }
}

impl Auth {
    /// Answers the token service. A registry without tokens gives one to anybody: it plays the thief's server, whose log is of interest.
    pub(super) fn give_token(&self, tokens: &Mutex<Tokens>, call: &Call) -> Reply {
        let stranger;
        let bearer = match self {
            Self::Bearer(bearer) => bearer.as_ref(),
            Self::Open | Self::Basic { .. } => {
                stranger = Bearer::new("", "").anonymous_pull();
                &stranger
            }
        };
        let denied = |message: &str| Reply::error(401, "UNAUTHORIZED", message);
        let (form, posted) = match call.request.method.as_str() {
            "GET" => (call.query.clone(), false),
            "POST" => (Form::read(&String::from_utf8_lossy(&call.body)), true),
            _ => return Reply::error(405, "UNSUPPORTED", "the operation is unsupported"),
        };
        let known = |user: &str, password: &str| {
            bearer.accounts.iter().find(|account| account.user == user && account.password == password)
        };
        let account = match (posted, form.get("grant_type")) {
            (false, _) => match call.request.authorization.as_deref().map(read_basic) {
                None => None,
                // A stranger takes what he is given.
                Some(_) if !matches!(self, Self::Bearer(_)) => None,
                Some(Some((user, password))) => match known(&user, &password) {
                    Some(account) => Some(account),
                    None => return denied("incorrect username or password"),
                },
                Some(None) => return denied("malformed authorization header"),
            },
            (true, Some("refresh_token")) => match (form.get("refresh_token"), &bearer.identity_token) {
                (Some(given), Some(wanted)) if given == wanted => bearer.accounts.first(),
                _ => return denied("invalid refresh token"),
            },
            (true, Some("password")) => match known(form.get("username").unwrap_or(""), form.get("password").unwrap_or("")) {
                Some(account) => Some(account),
                None => return denied("incorrect username or password"),
            },
            (true, _) => return Reply::error(400, "UNSUPPORTED", "unsupported grant_type"),
        };
        let asked: Vec<Scope> = form.all("scope").flat_map(|text| text.split(' ')).filter_map(Scope::read).collect();
        let granted = bearer.granted(&asked, account);
        if granted.len() < asked.len() && !bearer.hollow {
            return denied("access denied");
        }
        let lifetime = Duration::from_secs(bearer.expires_in.unwrap_or(DEFAULT_LIFETIME));
        let token = match bearer.token {
            TokenText::Opaque => Some(lock(tokens).issue(granted, lifetime)),
            TokenText::Newline => Some("stolen\r\nx-injected: yes".to_owned()),
            TokenText::Empty => Some(String::new()),
            TokenText::Missing => None,
        };
        bearer.token_reply(token.as_deref(), posted)
    }
}

impl Bearer {
    /// Words the reply. OAuth2 knows `access_token` only; the older `GET` has `token` too.
    fn token_reply(&self, token: Option<&str>, oauth2: bool) -> Reply {
        let mut body = Map::new();
        if let Some(token) = token {
            if !self.access_token_only && !oauth2 {
                body.insert("token".to_owned(), json!(token));
            }
            body.insert("access_token".to_owned(), json!(token));
        }
        if let Some(seconds) = self.expires_in {
            body.insert("expires_in".to_owned(), json!(seconds));
        }
        if let Some(time) = &self.issued_at {
            body.insert("issued_at".to_owned(), json!(time));
        }
        Reply::json(200, &Value::Object(body))
    }
}
