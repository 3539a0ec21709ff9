//! What a registry asks as proof, and what its token service gives: challenges, realms and tokens.
//!
//! Headers and bodies go in; nothing is sent from here. Challenges follow [RFC 9110 §11.6.1], all header lines of it; tokens follow
//! Docker's [token specification]. A registry names its token service itself and could name a thief's, so the credential goes only to the
//! registry's own origin, to pairs that are known in public, and to what the operator declares with `realms`.
//!
//! [RFC 9110 §11.6.1]: https://www.rfc-editor.org/rfc/rfc9110#section-11.6.1
//! [token specification]: https://distribution.github.io/distribution/spec/auth/token/

use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::config::{Endpoint, authority, starts_with_parts};
use super::error::RegistryError;
use crate::image::printable;

/// How long a token lives if its service doesn't say (token specification, `expires_in`). Services that say less are taken at their word.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);

/// Longest that a token is believed to live, so that a nonsense number doesn't keep one for ever.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Time kept back from a token's end, so that none expires on its way: at least this, or a tenth of its life.
const MARGIN: Duration = Duration::from_secs(5);

/// Registries whose token service is on another host, with that host ([observed], [reported]). Other public ones keep it on their own.
///
/// [observed]: https://github.com/devcontainers/cli/pull/1278
/// [reported]: https://github.com/hashicorp/terraform-provider-docker/issues/243
const KNOWN_REALMS: [(&str, &str); 3] = [
    ("registry-1.docker.io", "auth.docker.io"),
    ("registry.gitlab.com", "gitlab.com"),
    ("docker.elastic.co", "docker-auth.elastic.co"),
];

/// What the registry wants with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    /// A token from this address, which the policy permits.
    Bearer {
        realm: Url,
        service: Option<String>,
    },
}

impl Challenge {
    /// Reads the headers of a 401. The first usable bearer challenge wins, else Basic; [`None`] if there is neither. Lines and schemes
    /// that we don't understand are skipped.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Realm`] if the token service is not permitted.
    pub fn read(headers: &HeaderMap, endpoint: &Endpoint) -> Result<Option<Self>, RegistryError> {
        let mut basic = false;
        for line in headers.get_all(WWW_AUTHENTICATE) {
            let Ok(line) = line.to_str() else { continue };
            for challenge in http_auth::parser::ChallengeParser::new(line).map_while(Result::ok) {
                let parameter = |name: &str| {
                    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    let Some(realm) = parameter("realm") else { continue };
                    return Ok(Some(Self::Bearer { realm: permitted(&realm, endpoint)?, service: parameter("service") }));
                }
                basic |= challenge.scheme.eq_ignore_ascii_case("basic");
            }
        }
        Ok(basic.then_some(Self::Basic))
    }
}

/// Checks where the registry sends us for a token.
fn permitted(realm: &str, endpoint: &Endpoint) -> Result<Url, RegistryError> {
    let refused = || RegistryError::Realm { registry: endpoint.authority(), realm: printable(realm) };
    let url = Url::parse(realm).map_err(|_| refused())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused());
    }
    let own = url.origin() == endpoint.api_url.origin();
    let known = || {
        let pair = |&(registry, service): &(&str, &str)| endpoint.authority() == registry && authority(&url) == service;
        url.scheme() == "https" && KNOWN_REALMS.iter().any(pair)
    };
    let declared = || {
        let within = |allowed: &Url| allowed.path() == "/" || starts_with_parts(url.path(), allowed.path().trim_end_matches('/'));
        endpoint.realms.iter().any(|allowed| allowed.origin() == url.origin() && within(allowed))
    };
    if own || known() || declared() { Ok(url) } else { Err(refused()) }
}

/// What we ask a token for: to pull this repository. Azure's registry wants two actions more for listings
/// (Image Updater, `registry-scanner/pkg/registry/client.go`).
pub(super) fn scope(endpoint: &Endpoint, path: &str) -> String {
    let azure = endpoint.api_url.host_str().is_some_and(|host| host.ends_with(".azurecr.io"));
    format!("repository:{path}:pull{}", if azure { ",metadata_read,content_read" } else { "" })
}

/// A bearer token.
#[derive(Clone, Debug)]
pub(super) struct Token {
    /// `Bearer …`, marked sensitive: it prints as `Sensitive`.
    pub header: HeaderValue,
    /// How long it is to be used, the margin taken off.
    pub usable: Duration,
}

impl Token {
    /// Reads the token service's reply.
    ///
    /// # Errors
    ///
    /// What is wrong, for a message; the token is not in it.
    pub fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        #[derive(Deserialize)]
        struct Reply {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<serde_json::Value>,
        }
        let reply: Reply =
            serde_json::from_slice(bytes).map_err(|_| "the token service's answer is not the JSON that it should be")?;
        let text = [reply.token, reply.access_token].into_iter().flatten().find(|text| !text.is_empty());
        let text = text.ok_or("the token service's answer holds no token")?;
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("the token holds characters that no token has");
        }
        let mut header = HeaderValue::try_from(format!("Bearer {text}")).map_err(|_| "the token does not fit into a header")?;
        header.set_sensitive(true);
        let seconds = reply.expires_in.and_then(|value| value.as_f64().or_else(|| value.as_str()?.parse().ok()));
        let lifetime = seconds.filter(|&seconds| seconds > 0.0).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Ok(Self { header, usable: usable(lifetime.unwrap_or(DEFAULT_LIFETIME)) })
    }
}

/// Takes the margin off a token's life, but never more than half of it.
fn usable(lifetime: Duration) -> Duration {
    let lifetime = lifetime.min(MAX_LIFETIME);
    lifetime - MARGIN.max(lifetime / 10).min(lifetime / 2)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::registry::RegistriesConfig;

    fn endpoint(image: &str, config: &str) -> std::sync::Arc<Endpoint> {
        let config = RegistriesConfig::parse(config, Path::new("registries.conf")).expect(config);
        config.route(&image.parse().expect(image)).expect(image).endpoint
    }

    fn read(lines: &[&str], endpoint: &Endpoint) -> Result<Option<Challenge>, RegistryError> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_bytes(line.as_bytes()).expect("a header"));
        }
        Challenge::read(&headers, endpoint)
    }

    #[test]
    fn challenges_of_every_line_are_read() {
        let endpoint = endpoint("r.example/a", "");
        let bearer = |service: Option<&str>| {
            let realm = Url::parse("https://r.example/token").expect("a url");
            Some(Challenge::Bearer { realm, service: service.map(str::to_owned) })
        };
        let line = r#"Bearer realm="https://r.example/token",service="r.example",scope="repository:user/image:pull""#;
        for (lines, expected) in [
            (vec![line], bearer(Some("r.example"))),
            (vec![r#"Basic realm="x""#, line], bearer(Some("r.example"))),
            (vec!["Negotiate", line], bearer(Some("r.example"))),
            (vec![r#"Basic realm="x", bearer REALM="https://r.example/token""#], bearer(None)),
            (vec![r#"Basic realm="https://x/",service="ecr.amazonaws.com""#], Some(Challenge::Basic)),
            (vec!["Bearer"], None),
            (vec!["", "Bearer realm=", "\u{fc}\u{fc}", "=,=,,", r#"Bearer realm="unclosed"#], None),
            (vec!["Bearer error=\"x\"", r#"Basic realm="x""#], Some(Challenge::Basic)),
            (vec![], None),
        ] {
            assert_eq!(read(&lines, &endpoint).expect("permitted"), expected, "{lines:?}");
        }
    }

    /// A registry that names a token service of its own choice would get the credentials (the class of CVE-2026-48978).
    #[test]
    fn only_permitted_token_services_are_named() {
        let declared =
            "registries:\n- {name: r, prefix: r.example, api_url: 'https://r.example', realms: ['https://sso.example/auth']}\n";
        let plain = "registries:\n- {name: r, prefix: 'r.example:5000', api_url: 'http://r.example:5000'}\n";
        let permits = |image: &str, config: &str, realm: &str| permitted(realm, &endpoint(image, config)).is_ok();
        for (image, config, realm) in [
            ("r.example/a", "", "https://r.example/token"),
            ("r.example/a", "", "https://R.example:443/token?x=y"),
            ("r.example:5000/a", "", "https://r.example:5000/token"),
            ("r.example:5000/a", plain, "http://r.example:5000/token"),
            ("nginx", "", "https://auth.docker.io/token"),
            ("registry.gitlab.com/a/b", "", "https://gitlab.com/jwt/auth"),
            ("r.example/a", declared, "https://sso.example/auth/token"),
        ] {
            assert!(permits(image, config, realm), "{image} {realm}");
        }
        for (image, config, realm) in [
            ("r.example/a", "", "http://r.example/token"),
            ("r.example/a", "", "https://evil.example/token"),
            ("r.example/a", "", "https://r.example.evil.example/token"),
            ("r.example/a", "", "https://r.example:8443/token"),
            ("r.example/a", "", "https://r.example@evil.example/token"),
            ("r.example/a", "", "https://user:pass@r.example/token"),
            ("r.example/a", "", "https://auth.docker.io/token"),
            ("nginx", "", "http://auth.docker.io/token"),
            ("nginx", "", "https://gitlab.com/jwt/auth"),
            ("r.example/a", "", "/token"),
            ("r.example/a", "", "file:///etc/passwd"),
            ("r.example/a", "", ""),
            ("r.example/a", declared, "https://sso.example/authority"),
            ("r.example/a", declared, "http://sso.example/auth"),
        ] {
            assert!(!permits(image, config, realm), "{image} {realm}");
        }
    }

    #[test]
    fn azure_is_asked_for_more() {
        assert_eq!(scope(&endpoint("x.azurecr.io/a", ""), "a"), "repository:a:pull,metadata_read,content_read");
        assert_eq!(scope(&endpoint("x.azurecr.io.example/a", ""), "a"), "repository:a:pull");
    }

    #[test]
    fn tokens_live_as_long_as_their_service_says() {
        for (text, seconds) in [
            (r#"{"token":"t"}"#, 54.0),
            (r#"{"token":"t","expires_in":300}"#, 270.0),
            (r#"{"access_token":"t","expires_in":"300"}"#, 270.0),
            (r#"{"token":"t","expires_in":0}"#, 54.0),
            (r#"{"token":"t","expires_in":-1}"#, 54.0),
            (r#"{"token":"t","expires_in":6}"#, 3.0),
            (r#"{"token":"t","expires_in":20}"#, 15.0),
            (r#"{"token":"t","expires_in":1e300}"#, 54.0),
            (r#"{"token":"t","expires_in":[]}"#, 54.0),
            (r#"{"token":"t","expires_in":1e9}"#, 77_760.0),
        ] {
            assert_eq!(Token::read(text.as_bytes()).expect(text).usable, Duration::from_secs_f64(seconds), "{text}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused_and_not_shown() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"token":""}"#,
            r#"{"token":"s3cret\r\nx: y"}"#,
            r#"{"token":"s3cret\u0000"}"#,
            r#"{"token":"s3 cret"}"#,
            r#"{"token":"s3cretü"}"#,
        ] {
            let error = Token::read(text.as_bytes()).expect_err(text);
            assert!(!error.contains("s3"), "{error}");
        }
        let token = Token::read(br#"{"token":"s3cret"}"#).expect("a token");
        assert!(!format!("{token:?}").contains("s3cret"));
    }
}
