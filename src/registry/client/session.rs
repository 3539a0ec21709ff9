//! What we hold of one credential at one registry: the scheme it asks for, the credential, its tokens.
//!
//! Whoever needs a token while another call fetches it waits for that one. Every credential and token has a number, so that a call
//! whose authorization was refused throws away that authorization and not the new one that another call has just fetched.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::HeaderValue;
use reqwest::{Method, Url};
use tokio::time::Instant;

use super::connection::{Connection, Request, redirected};
use crate::registry::auth::{Challenge, Token};
use crate::registry::config::authority;
use crate::registry::credential::provider::{CredentialSource, Found};
use crate::registry::credential::{Credential, basic};
use crate::registry::error::{Because, RegistryError};

/// Largest reply of a token service, in bytes.
const TOKEN_BODY: usize = 1 << 20;

/// Tokens that are kept at most; each is for one repository.
const TOKENS: usize = 10_000;

/// The state of one credential at one registry.
#[derive(Debug)]
pub struct Session {
    /// The credential's name, without secrets.
    pub identity: String,
    pub origin: CredentialSource,
    /// What the registry asked for last; [`None`] until it asks.
    scheme: Mutex<Option<Challenge>>,
    credential: tokio::sync::Mutex<Option<Held>>,
    tokens: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<HeldToken>>>>>,
    number: AtomicU64,
}

#[derive(Clone, Debug)]
struct Held {
    /// [`None`] is anonymous.
    credential: Option<Credential>,
    number: u64,
    read: Instant,
}

#[derive(Debug)]
struct HeldToken {
    token: Token,
    number: u64,
    /// Of the credential that it was given for.
    credential: u64,
    until: Instant,
}

/// What goes with a request.
#[derive(Debug)]
pub struct Authorization {
    pub header: HeaderValue,
    pub number: u64,
    /// Was all of it fetched for this very request? Then asking again is no use.
    pub fresh: bool,
}

/// What a authorization is wanted for.
#[derive(Debug)]
pub struct AuthContext<'a> {
    /// For messages.
    pub repository: &'a str,
    /// For tokens.
    pub scope: &'a str,
    pub deadline: Instant,
}

impl Session {
    pub fn new(Found { identity, origin }: Found) -> Self {
        Self {
            identity,
            origin,
            scheme: Mutex::default(),
            credential: tokio::sync::Mutex::default(),
            tokens: Mutex::default(),
            number: AtomicU64::new(0),
        }
    }

    /// Keeps what the registry asks for.
    pub fn learn(&self, challenge: Challenge) {
        *self.scheme.lock().unwrap_or_else(PoisonError::into_inner) = Some(challenge);
    }

    pub fn denied(&self, repository: &str) -> RegistryError {
        RegistryError::Denied { repository: repository.to_owned(), credential: self.identity.clone() }
    }

    /// What goes with the next request: [`None`] if the registry has not asked for anything, or asks for Basic and there is no
    /// credential. `rejected` is the authorization that the registry has just refused.
    pub async fn authorize(
        &self,
        at: &Connection,
        context: &AuthContext<'_>,
        rejected: Option<u64>,
    ) -> Result<Option<Authorization>, RegistryError> {
        let scheme = self.scheme.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match scheme {
            None => {
                // A credential that can't be read is an error even where nobody asks for it: whoever names one wants it used.
                if let CredentialSource::Unusable(_) = self.origin {
                    self.origin.read(&self.identity).await?;
                }
                Ok(None)
            }
            Some(Challenge::Basic) => {
                let (held, fresh) = self.credential(at, rejected).await?;
                match &held.credential {
                    None => Ok(None),
                    Some(Credential::Password { user, password }) => {
                        Ok(Some(Authorization { header: basic(user, password), number: held.number, fresh }))
                    }
                    Some(Credential::IdentityToken(_)) => Err(RegistryError::Credentials {
                        credential: self.identity.clone(),
                        source: Because::cause("it is an identity token, and the registry asks for user and password"),
                    }),
                }
            }
            Some(Challenge::Bearer { realm, service }) => {
                self.token(at, context, rejected, &realm, service.as_deref()).await.map(Some)
            }
        }
    }

    /// The credential, read anew if it was refused or has expired, and whether it was.
    async fn credential(&self, at: &Connection, rejected: Option<u64>) -> Result<(Held, bool), RegistryError> {
        let mut held = self.credential.lock().await;
        let expired = |held: &Held| at.endpoint.credentials_expire.is_some_and(|time| held.read.elapsed() >= time);
        if let Some(held) = held.as_ref().filter(|held| rejected != Some(held.number) && !expired(held)) {
            return Ok((held.clone(), false));
        }
        *held = None;
        let credential = self.origin.read(&self.identity).await?;
        let new = Held { credential, number: self.next_number(), read: Instant::now() };
        *held = Some(new.clone());
        Ok((new, true))
    }

    async fn token(
        &self,
        at: &Connection,
        context: &AuthContext<'_>,
        rejected: Option<u64>,
        realm: &Url,
        service: Option<&str>,
    ) -> Result<Authorization, RegistryError> {
        let slot = self.slot(context.scope);
        let mut slot = slot.lock().await;
        let mut rejected_credential = None;
        if let Some(held) = &*slot {
            if rejected == Some(held.number) {
                rejected_credential = Some(held.credential);
            } else if Instant::now() < held.until {
                return Ok(Authorization { header: held.token.header.clone(), number: held.number, fresh: false });
            }
        }
        *slot = None;
        let (mut credential, mut fresh) = self.credential(at, rejected_credential).await?;
        let token = match self.fetch(at, context, &credential, realm, service).await {
            // The token service refuses a credential that we read a while ago: perhaps it was changed since.
            Err(RegistryError::Denied { .. }) if !fresh && credential.credential.is_some() => {
                (credential, fresh) = self.credential(at, Some(credential.number)).await?;
                self.fetch(at, context, &credential, realm, service).await?
            }
            outcome => outcome?,
        };
        let number = self.next_number();
        let header = token.header.clone();
        let until = Instant::now() + token.usable;
        *slot = Some(HeldToken { token, number, credential: credential.number, until });
        // An anonymous token can't become better by reading nothing again.
        Ok(Authorization { header, number, fresh: fresh || credential.credential.is_none() })
    }

    /// The place of one scope's token.
    fn slot(&self, scope: &str) -> Arc<tokio::sync::Mutex<Option<HeldToken>>> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= TOKENS {
            let in_use = |slot: &Arc<tokio::sync::Mutex<Option<HeldToken>>>| match slot.try_lock() {
                Ok(held) => held.as_ref().is_some_and(|held| Instant::now() < held.until),
                Err(_) => true,
            };
            tokens.retain(|_, slot| Arc::strong_count(slot) > 1 || in_use(slot));
        }
        Arc::clone(tokens.entry(scope.to_owned()).or_default())
    }

    /// Asks the token service: GET with the password, or POST with an identity token ([OAuth2 specification]).
    ///
    /// [OAuth2 specification]: https://distribution.github.io/distribution/spec/auth/oauth/
    async fn fetch(
        &self,
        at: &Connection,
        context: &AuthContext<'_>,
        held: &Held,
        realm: &Url,
        service: Option<&str>,
    ) -> Result<Token, RegistryError> {
        let mut request = Request::get(realm.clone(), TOKEN_BODY);
        let parameters = service.map(|service| ("service", service)).into_iter().chain([("scope", context.scope)]);
        if let Some(Credential::IdentityToken(token)) = &held.credential {
            request.method = Method::POST;
            let fixed = [("grant_type", "refresh_token"), ("client_id", "pinion"), ("refresh_token", token.extract())];
            request.form = Some(encode(parameters.chain(fixed)));
        } else {
            request.url.query_pairs_mut().extend_pairs(parameters);
            if let Some(Credential::Password { user, password }) = &held.credential {
                request.authorization = Some(basic(user, password));
            }
        }
        at.check(realm).await?;
        let reply = at.exchange(&request, context.deadline).await?;
        let malformed = |text: String| RegistryError::Malformed { registry: authority(realm), source: Because::cause(text) };
        match reply.status.as_u16() {
            200..=299 => {
                Token::read(&reply.body).map_err(|text| reply.web_page(realm).unwrap_or_else(|| malformed(text.to_owned())))
            }
            401 | 403 => Err(self.denied(context.repository)),
            // What OAuth2 says of a refresh token that it doesn't know (RFC 6749 §5.2).
            400 if request.method == Method::POST => Err(self.denied(context.repository)),
            300..=399 => Err(redirected(&reply, realm)),
            status => Err(malformed(format!("the token service answered {status}"))),
        }
    }

    fn next_number(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }
}

/// Writes a form.
fn encode<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut url = Url::parse("http://form").expect("the address is a constant");
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}
