//! Proofs: Basic, tokens, credentials that change.

use super::*;

#[tokio::test]
async fn open_registries_see_no_credential() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    let script = Script::printing("alice:s3cret");
    tags(&client_with(&registry, &script.line(), limits()), &registry).await.expect("a listing");
    assert!(registry.requests().iter().all(|request| request.authorization.is_none()));
    assert_eq!(script.runs(), 0);
}

#[tokio::test]
async fn basic_credentials_are_sent_from_then_on() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    registry.auth(Auth::basic("alice", "s3cret"));
    let script = Script::printing("alice:s3cret\n");
    let client = client_with(&registry, &script.line(), limits());
    for _ in 0..3 {
        tags(&client, &registry).await.expect("a listing");
    }
    let sent: Vec<bool> = registry.requests().iter().map(|request| request.authorization.is_some()).collect();
    assert_eq!((sent, script.runs()), (vec![false, true, true, true], 1));
}

#[tokio::test]
async fn anonymous_pulls_get_a_token() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    registry.tags("acme/api", ["1.0"]);
    registry.auth(Bearer::new("alice", "s3cret").anonymous_pull().dummy_scope().service("my registry"));
    let client = client(&registry);
    for _ in 0..3 {
        tags(&client, &registry).await.expect("a listing");
    }
    client.tags(&repository(&registry, "acme/api"), &OPERATOR).await.expect("a listing");
    let tokens: Vec<_> = registry.requests().into_iter().filter(|request| request.route == Route::Token).collect();
    let scopes: Vec<_> = tokens.iter().filter_map(|request| request.parameter("scope")).collect();
    assert_eq!(scopes, ["repository:acme/web:pull", "repository:acme/api:pull"]);
    assert_eq!(tokens[0].parameter("service").as_deref(), Some("my registry"));
    assert!(tokens.iter().all(|request| request.authorization.is_none()));
    // One request was refused: the second repository's token was fetched before it was asked for.
    assert_eq!(registry.count(Route::Tags), 5);
}

#[tokio::test]
async fn private_pulls_get_a_token_for_their_credential() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    let script = Script::printing("alice:s3cret");
    for bearer in [
        Bearer::new("alice", "s3cret"),
        Bearer::new("alice", "s3cret").access_token_only(),
        Bearer::new("alice", "s3cret").expires_in(None),
        Bearer::new("alice", "s3cret").after_challenge("Negotiate").after_challenge("Basic realm=\"x\""),
        Bearer::new("alice", "s3cret").after_challenge("Basic realm=\"x\"").one_line(),
        Bearer::new("alice", "s3cret").issued_at("nonsense"),
    ] {
        registry.auth(bearer.clone());
        let client = client_with(&registry, &script.line(), limits());
        let listing = tags(&client, &registry).await;
        assert!(listing.is_ok(), "{bearer:?}: {}", shown(&listing.expect_err("an error")));
        let all = format!("{client:?}");
        assert!(!all.contains("s3cret") && !all.contains("fake-token") && !all.contains("YWxpY2U6"), "{all}");
    }
}

#[tokio::test]
async fn wrong_and_missing_credentials_are_denied() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    let script = Script::printing("alice:wr0ng");
    let source = script.source();
    for auth in [
        Auth::basic("alice", "s3cret"),
        Bearer::new("alice", "s3cret").into(),
        Bearer::new("alice", "s3cret").anonymous_pull().into(),
        Bearer::new("alice", "s3cret").hollow_tokens().into(),
    ] {
        registry.auth(auth.clone());
        let error = tags(&client_with(&registry, &script.line(), limits()), &registry).await.expect_err("a wrong password");
        assert!(matches!(&error, RegistryError::Denied { credential, .. } if *credential == source), "{auth:?} {error}");
        assert!(!shown(&error).contains("wr0ng"), "{error:?}");
    }
    for auth in [Auth::basic("alice", "s3cret"), Bearer::new("a", "b").into(), Bearer::new("a", "b").hollow_tokens().into()] {
        registry.auth(auth);
        let error = tags(&client(&registry), &registry).await.expect_err("no credential");
        assert!(matches!(&error, RegistryError::Denied { credential, .. } if credential == "anonymous"));
        assert!(error.hint().is_some_and(|hint| hint.contains("--pull-secret")));
    }
}

#[tokio::test]
async fn a_failing_token_service_is_no_wrong_password() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    registry.auth(Bearer::new("alice", "s3cret"));
    let script = Script::printing("alice:s3cret");
    for (fault, fits) in [
        (Fault::status(500), unavailable as fn(&RegistryError) -> bool),
        (Fault::Drop, unavailable),
        (Fault::status(429), |error| matches!(error, RegistryError::Limited { .. })),
        (Fault::too_many_requests("3600"), |error| matches!(error, RegistryError::Limited { retry_after: Some(_), .. })),
        (Fault::status(404), malformed),
        (Fault::garbage(), |error| matches!(error, RegistryError::WebPage { .. })),
        (Fault::status(401), denied),
        (Fault::EndlessBody, |error| matches!(error, RegistryError::TooLarge { .. })),
        (Fault::redirect("http://127.0.0.1:1/token"), |error| matches!(error, RegistryError::Redirected { .. })),
    ] {
        registry.clear_faults();
        registry.fault_on(Route::Token, When::Always, fault.clone());
        let error = tags(&client_with(&registry, &script.line(), limits()), &registry).await.expect_err("no token");
        assert!(fits(&error), "{fault:?}: {}", shown(&error));
    }
}

/// A token goes into a header: what would end the header, or is no token, is refused.
#[tokio::test]
async fn hostile_tokens_are_refused() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    for token in [TokenText::Newline, TokenText::Empty, TokenText::Missing] {
        registry.auth(Bearer::new("alice", "s3cret").anonymous_pull().token(token));
        let error = tags(&client(&registry), &registry).await.expect_err("no token");
        assert!(malformed(&error) && !shown(&error).contains("stolen"), "{token:?}: {}", shown(&error));
    }
}

#[tokio::test]
async fn hostile_challenges_are_denied() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    for challenge in
        ["", "Bearer", "Bearer realm", "Bearer realm=\"", "=,=,", "Bearer service=\"x\"", "Digest realm=\"x\"", "üü", ",,,,"]
    {
        registry.auth(Bearer::new("alice", "s3cret").challenge(challenge));
        assert!(denied(&tags(&client(&registry), &registry).await.expect_err(challenge)), "{challenge}");
    }
}

#[tokio::test]
async fn twenty_calls_share_one_token() {
    let registry = FakeRegistry::start().await;
    registry.push("acme/web", "1.0");
    registry.auth(Bearer::new("alice", "s3cret"));
    registry.fault_on(Route::Token, When::Always, Fault::SlowHeaders(Duration::from_millis(100)));
    let script = Script::printing("alice:s3cret");
    let client = client_with(&registry, &script.line(), limits());
    let (web, name) = (web(&registry), tag("1.0"));
    let all = futures::future::join_all((0..20).map(|_| client.digest(&web, &name, &OPERATOR))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!((registry.count(Route::Token), script.runs()), (1, 1));
}

#[tokio::test]
async fn whoever_waits_for_a_token_gets_one_when_its_fetcher_is_gone() {
    let registry = FakeRegistry::start().await;
    registry.push("acme/web", "1.0");
    registry.auth(Bearer::new("alice", "s3cret").anonymous_pull());
    registry.fault_on(Route::Token, When::Times(1), Fault::Hang);
    let client = client(&registry);
    let (web, name) = (web(&registry), tag("1.0"));
    let fetcher = client.clone();
    let (gone_web, gone_name) = (web.clone(), name.clone());
    let gone = tokio::spawn(async move { fetcher.digest(&gone_web, &gone_name, &OPERATOR).await });
    until("no token is asked for", async || registry.count(Route::Token) == 1).await;
    let kept = client.digest(&web, &name, &OPERATOR);
    let (kept, ()) = tokio::join!(kept, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        gone.abort();
    });
    kept.expect("a digest");
}

#[tokio::test]
async fn a_token_is_replaced_before_it_expires() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    registry.auth(Bearer::new("alice", "s3cret").anonymous_pull().expires_in(2));
    // The half of its life that is used may be over too soon on a slow machine: then it is looked at again.
    let mut tries = 0;
    let client = loop {
        let (client, began) = (client(&registry), Instant::now());
        registry.forget_requests();
        tags(&client, &registry).await.expect("a listing");
        tags(&client, &registry).await.expect("a listing");
        if began.elapsed() < Duration::from_secs(1) {
            break client;
        }
        tries += 1;
        assert!(tries < 50, "two listings take a second");
    };
    assert_eq!(registry.count(Route::Token), 1);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    registry.forget_requests();
    tags(&client, &registry).await.expect("a listing");
    assert_eq!((registry.count(Route::Token), registry.count(Route::Tags)), (1, 1));
}

#[tokio::test]
async fn a_revoked_token_is_replaced() {
    let registry = FakeRegistry::start().await;
    registry.push("acme/web", "1.0");
    registry.auth(Bearer::new("alice", "s3cret"));
    let script = Script::printing("alice:s3cret");
    let client = client_with(&registry, &script.line(), limits());
    let (web, name) = (web(&registry), tag("1.0"));
    client.digest(&web, &name, &OPERATOR).await.expect("a digest");
    registry.revoke_tokens();
    registry.forget_requests();
    let all = futures::future::join_all((0..20).map(|_| client.digest(&web, &name, &OPERATOR))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!((registry.count(Route::Token), script.runs()), (1, 2));
}

#[tokio::test]
async fn a_changed_password_is_read_anew() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    for auth in [|password: &str| Auth::basic("alice", password), |password: &str| Bearer::new("alice", password).into()] {
        let script = Script::printing("alice:old");
        let client = client_with(&registry, &script.line(), limits());
        registry.auth(auth("old"));
        tags(&client, &registry).await.expect("the old password");
        registry.auth(auth("new"));
        registry.revoke_tokens();
        script.now_prints("alice:new");
        tags(&client, &registry).await.expect("the new password");
        script.now_prints("alice:wr0ng");
        registry.auth(auth("newer"));
        registry.revoke_tokens();
        assert!(denied(&tags(&client, &registry).await.expect_err("a wrong password")));
    }
}

#[tokio::test]
async fn a_password_that_the_token_service_refuses_is_read_anew() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    registry.tags("acme/api", ["1.0"]);
    let script = Script::printing("alice:old");
    let client = client_with(&registry, &script.line(), limits());
    registry.auth(Bearer::new("alice", "old"));
    tags(&client, &registry).await.expect("the old password");
    registry.auth(Bearer::new("alice", "new"));
    script.now_prints("alice:new");
    client.tags(&repository(&registry, "acme/api"), &OPERATOR).await.expect("the new password");
    assert_eq!(script.runs(), 2);
}

#[tokio::test]
async fn a_forbidden_answer_is_worth_one_new_credential() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    registry.auth(Auth::basic("AWS", "token"));
    let script = Script::printing("AWS:token");
    let client = client_with(&registry, &script.line(), limits());
    tags(&client, &registry).await.expect("a listing");
    // ECR says 403 to a token that has expired.
    registry.fault_on(Route::Tags, When::Times(1), Fault::status(403));
    tags(&client, &registry).await.expect("a listing");
    assert_eq!(script.runs(), 2);
    registry.fault(Fault::status(403));
    registry.forget_requests();
    assert!(denied(&tags(&client, &registry).await.expect_err("forbidden")));
    assert_eq!(registry.count(Route::Tags), 2);
}

#[tokio::test]
async fn credentials_expire_as_declared() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    registry.auth(Auth::basic("alice", "s3cret"));
    let script = Script::printing("alice:s3cret");
    let client = client_with(&registry, &format!("{}  credsexpire: 300ms\n", script.line()), limits());
    tags(&client, &registry).await.expect("a listing");
    assert_eq!(script.runs(), 1);
    tokio::time::sleep(Duration::from_millis(350)).await;
    tags(&client, &registry).await.expect("a listing");
    assert_eq!(script.runs(), 2);
    let client = client_with(&registry, &format!("{}  credsexpire: 1h\n", script.line()), limits());
    tags(&client, &registry).await.expect("a listing");
    tags(&client, &registry).await.expect("a listing");
    assert_eq!(script.runs(), 3);
}

#[tokio::test]
async fn an_identity_token_is_posted() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    registry.auth(Bearer::new("alice", "s3cret").identity_token("id3ntity"));
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("config.json");
    std::fs::write(&path, format!(r#"{{"auths":{{"{}":{{"identitytoken":"id3ntity"}}}}}}"#, registry.host())).expect("written");
    let client = client_with(&registry, "", Limits { docker_config: Some(path.clone()), ..limits() });
    tags(&client, &registry).await.unwrap_or_else(|error| panic!("{}", shown(&error)));
    let posted = registry.requests().into_iter().find(|request| request.route == Route::Token).expect("a token request");
    assert_eq!((posted.method.as_str(), posted.query.as_str(), posted.authorization), ("POST", "", None));
    assert!(posted.body.contains("grant_type=refresh_token") && posted.body.contains("scope=repository%3Aacme%2Fweb%3Apull"));

    std::fs::write(&path, format!(r#"{{"auths":{{"{}":{{"identitytoken":"another"}}}}}}"#, registry.host())).expect("written");
    assert!(denied(&tags(&client, &registry).await.expect_err("unknown")));
}

#[tokio::test]
async fn dockers_configuration_is_used_and_followed() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("config.json");
    let store = |password: &str| {
        let text = format!(r#"{{"auths":{{"{}":{{"username":"alice","password":"{password}"}}}}}}"#, registry.host());
        std::fs::write(&path, text).expect("written");
    };
    registry.auth(Auth::basic("alice", "s3cret"));
    let client = client_with(&registry, "", Limits { docker_config: Some(path.clone()), ..limits() });
    assert_eq!(client.identity(&web(&registry), &OPERATOR), "anonymous");
    assert!(denied(&tags(&client, &registry).await.expect_err("anonymous")));
    store("s3cret");
    assert_eq!(client.identity(&web(&registry), &OPERATOR), format!("docker-config:{}", registry.host()));
    tags(&client, &registry).await.expect("a listing");
    registry.auth(Auth::basic("alice", "longer-s3cret"));
    store("longer-s3cret");
    tags(&client, &registry).await.expect("a listing");
    std::fs::write(&path, "{").expect("written");
    let error = tags(&client, &registry).await.expect_err("damaged");
    assert!(matches!(error, RegistryError::Credentials { .. }), "{error}");
}

#[tokio::test]
async fn registries_conf_goes_before_dockers_configuration() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    registry.auth(Auth::basic("alice", "s3cret"));
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("config.json");
    std::fs::write(&path, format!(r#"{{"auths":{{"{}":{{"username":"bob","password":"x"}}}}}}"#, registry.host()))
        .expect("written");
    let script = Script::printing("alice:s3cret");
    let client = client_with(&registry, &script.line(), Limits { docker_config: Some(path), ..limits() });
    assert_eq!(client.identity(&web(&registry), &OPERATOR), script.source());
    tags(&client, &registry).await.expect("a listing");
}

#[tokio::test]
async fn a_credential_that_cannot_be_read_is_named_and_not_shown() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    registry.auth(Auth::basic("alice", "s3cret"));
    for text in ["s3cret", "alice:s3cret\nmore", "\n", ""] {
        let script = Script::printing(text);
        let error = tags(&client_with(&registry, &script.line(), limits()), &registry).await.expect_err(text);
        assert!(matches!(&error, RegistryError::Credentials { credential, .. } if *credential == script.source()), "{error}");
        assert!(!shown(&error).contains("s3cret"));
    }
    for line in ["env:PINION_TEST_NO_SUCH_VARIABLE", "ext:/no/such/program", "secret:argocd/ghcr#creds", "pullsecret:argocd/ghcr"]
    {
        let client = client_with(&registry, &format!("  credentials: '{line}'\n"), limits());
        assert_eq!(client.identity(&web(&registry), &OPERATOR), line);
        let error = tags(&client, &registry).await.expect_err(line);
        assert!(matches!(error, RegistryError::Credentials { .. }), "{line}: {error}");
    }
}
