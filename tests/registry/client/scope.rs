//! Who may see which credential.

use super::*;

#[tokio::test]
async fn a_credential_is_never_sent_to_a_foreign_token_service() {
    let (registry, thief) = (FakeRegistry::start().await, FakeRegistry::start().await);
    registry.tags("acme/web", ["1.0"]);
    let script = Script::printing("alice:s3cret");
    let own = registry.url();
    for realm in [
        format!("{}/token", thief.url()),
        format!("http://{}@{}/token", registry.host(), thief.host()),
        format!("http://alice:x@{}/token", registry.host()),
        format!("https://{}/token", registry.host()),
        "https://auth.docker.io/token".to_owned(),
        format!("{own}.evil.example/token"),
        "/token".to_owned(),
        "nonsense".to_owned(),
    ] {
        registry.auth(Bearer::new("alice", "s3cret").realm(&realm));
        let error = tags(&client_with(&registry, &script.line(), limits()), &registry).await.expect_err(&realm);
        assert!(matches!(error, RegistryError::Realm { .. }), "{realm}: {}", shown(&error));
    }
    assert_eq!((thief.connections(), registry.count(Route::Token), script.runs()), (0, 0, 0));
}

#[tokio::test]
async fn a_declared_token_service_may_have_the_credential() {
    let (registry, service) = (FakeRegistry::start().await, FakeRegistry::start().await);
    registry.tags("acme/web", ["1.0"]);
    service.auth(Bearer::new("alice", "s3cret"));
    registry.auth(Bearer::new("alice", "s3cret").issued_by(&service));
    let script = Script::printing("alice:s3cret");
    let lines = format!("{}  realms: ['{}/token']\n", script.line(), service.url());
    tags(&client_with(&registry, &lines, limits()), &registry).await.expect("a listing");
    assert_eq!(service.count(Route::Token), 1);
    let elsewhere = format!("{}  realms: ['{}/other']\n", script.line(), service.url());
    let error = tags(&client_with(&registry, &elsewhere, limits()), &registry).await.expect_err("another path");
    assert!(matches!(error, RegistryError::Realm { .. }));
}

#[tokio::test]
async fn a_credential_reaches_no_registry_but_its_own() {
    let (registry, other) = (FakeRegistry::start().await, FakeRegistry::start().await);
    other.tags("acme/web", ["1.0"]);
    for auth in [Auth::basic("bob", "x"), Bearer::new("bob", "x").into()] {
        other.auth(auth);
        let script = Script::printing("alice:s3cret");
        let text = format!(
            "registries:\n- {{name: a, prefix: '{}', api_url: '{}', credentials: '{}'}}\n- {{name: b, prefix: '{}', api_url: '{}'}}\n",
            registry.host(),
            registry.url(),
            script.source(),
            other.host(),
            other.url()
        );
        let config = RegistriesConfig::parse(&text, Path::new("x")).expect("a configuration");
        let client = Client::new(config, limits());
        assert!(denied(&client.tags(&web(&other), &OPERATOR).await.expect_err("no credential")));
        assert_eq!(script.runs(), 0);
    }
    assert!(other.requests().iter().all(|request| request.authorization.is_none()));
}

#[tokio::test]
async fn tenants_of_one_registry_stay_apart() {
    let registry = FakeRegistry::start().await;
    for path in ["alice/app", "bob/app"] {
        registry.tags(path, ["1.0"]);
    }
    registry.auth(Bearer::new("admin", "adm1n").account("alice", "a", "alice/").account("bob", "b", "bob/"));
    let (alice, bob) = (Script::printing("alice:a"), Script::printing("bob:b"));
    let client = client_with(&registry, "", Limits { allow_application_credentials: true, ..limits() });
    let (as_alice, as_bob) = (Access::application(&alice.source()), Access::application(&bob.source()));
    let ask = async |path: &str, access: &Access| client.tags(&repository(&registry, path), access).await;
    for _ in 0..2 {
        ask("alice/app", &as_alice).await.expect("her own");
        ask("bob/app", &as_bob).await.expect("his own");
        assert!(denied(&ask("alice/app", &as_bob).await.expect_err("not his")));
        assert!(denied(&ask("bob/app", &as_alice).await.expect_err("not hers")));
        assert!(denied(&ask("alice/app", &OPERATOR).await.expect_err("anonymous")));
    }
}

#[tokio::test]
async fn applications_may_not_name_variables_and_programs() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    registry.auth(Auth::basic("alice", "s3cret"));
    let script = Script::printing("alice:s3cret");
    let client = client(&registry);
    for source in
        ["env:HOME", &script.source(), &format!("x={}", script.source()), &script.source().replace("ext", "EXT"), "alice:s3cret"]
    {
        let error = client.tags(&web(&registry), &Access::application(source)).await.expect_err(source);
        assert!(matches!(error, RegistryError::Credentials { .. }), "{source}: {error}");
        assert!(!shown(&error).contains("s3cret"), "{}", shown(&error));
    }
    assert_eq!((script.runs(), registry.count(Route::Any)), (0, 0));
    let client = client_with(&registry, "", Limits { allow_application_credentials: true, ..limits() });
    client.tags(&web(&registry), &Access::application(&script.source())).await.expect("allowed");
}

#[tokio::test]
async fn an_applications_credential_has_another_name_than_the_operators() {
    let registry = FakeRegistry::start().await;
    let client = client_with(&registry, "  credentials: 'env:GHCR'\n", limits());
    let name = |access: &Access| client.identity(&web(&registry), access);
    assert_eq!(name(&OPERATOR), "env:GHCR");
    assert_eq!(name(&Access::application("env:GHCR")), "application/env:GHCR");
    assert_eq!(name(&Access::application("PullSecret:argocd/ghcr")), "application/pullsecret:argocd/ghcr");
    assert_eq!(name(&Access::application("alice:s3cret")), "application/unusable");
}

#[tokio::test]
async fn an_image_of_another_default_registry_has_that_in_its_name() {
    let config = "registries: [{name: h, prefix: h.example, api_url: 'https://h.example', default: true}]";
    let client = Client::new(RegistriesConfig::parse(config, Path::new("x")).expect("a configuration"), limits());
    let name = |image: &str| client.identity(&image.parse().expect(image), &OPERATOR);
    assert_eq!(name("acme/web"), "anonymous@h.example");
    assert_eq!((name("docker.io/acme/web"), name("h.example/acme/web")), ("anonymous".to_owned(), "anonymous".to_owned()));
}
