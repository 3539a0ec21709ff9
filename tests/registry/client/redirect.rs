//! Where redirects lead.

use super::*;

#[tokio::test]
async fn blobs_are_followed_to_their_storage_without_the_credential() {
    let (registry, storage) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let script = Script::printing("alice:s3cret");
    for auth in [Auth::basic("alice", "s3cret"), Bearer::new("alice", "s3cret").into()] {
        registry.auth(auth);
        registry.push("acme/web", "1.0");
        registry.redirect_blobs_to(&storage);
        storage.forget_requests();
        let refused = client_with(&registry, &script.line(), limits());
        let error = image_config(&refused, &registry, "1.0").await.expect_err("another port of the same host");
        assert!(matches!(error, RegistryError::HostRefused { .. }), "{error}");
        let egress = Policy { cidrs: vec!["127.0.0.0/8".parse().expect("a range")], ..Policy::default() };
        let client = client_with(&registry, &script.line(), Limits { egress: Arc::new(egress), ..limits() });
        image_config(&client, &registry, "1.0").await.unwrap_or_else(|error| panic!("{}", shown(&error)));
        assert_eq!(storage.count(Route::Blob), 1);
        assert!(storage.requests().iter().all(|request| request.authorization.is_none()));
    }
}

#[tokio::test]
async fn blobs_are_not_followed_to_hosts_that_may_not_be_asked() {
    let registry = FakeRegistry::start().await;
    registry.push("acme/web", "1.0");
    let client = client(&registry);
    let blob = blob(&client, &registry, "1.0").await;
    for location in [
        "https://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/blob",
        "https://localhost/blob",
        "https://0x7f.2/blob",
        "https://[::1]/blob",
        "ftp://ghcr.io/blob",
        "file:///etc/passwd",
    ] {
        registry.clear_faults();
        registry.fault_on(Route::Blob, When::Always, Fault::redirect(location));
        let error = client.config(&web(&registry), &blob, &OPERATOR).await.expect_err(location);
        assert!(matches!(error, RegistryError::HostRefused { .. }), "{location}: {error}");
    }
}

/// A declared host may have any address on the declared port alone: another port is another service.
#[tokio::test]
async fn blobs_are_not_followed_to_another_port_of_a_declared_host_with_a_private_address() {
    let (registry, other) = (FakeRegistry::start().await, FakeRegistry::start().await);
    registry.push("acme/web", "1.0");
    let named = |registry: &FakeRegistry| registry.url().replace("127.0.0.1", "localhost");
    let text =
        format!("registries:\n- {{name: fake, prefix: '{}', api_url: '{}', limit: 0}}\n", registry.host(), named(&registry));
    let config = RegistriesConfig::parse(&text, Path::new("registries.conf")).expect("a configuration");
    let with = |range: &str| {
        // With a range, names are judged by their addresses; `localhost` is the one that needs no network.
        let egress = Policy { cidrs: vec![range.parse().expect("a range")], ..Policy::default() };
        Client::new(config.clone(), Limits { egress: Arc::new(egress), ..limits() })
    };
    registry.fault_on(Route::Blob, When::Always, Fault::redirect(format!("{}{{path}}", named(&other))));
    let client = with("10.0.0.0/8");
    let error = image_config(&client, &registry, "1.0").await.expect_err("another port");
    assert!(matches!(&error, RegistryError::HostRefused { host, .. } if *host == other.host().replace("127.0.0.1", "localhost")));
    assert!(shown(&error).contains("private or reserved address") && shown(&error).contains("egress.cidrs"), "{}", shown(&error));
    assert_eq!(other.connections(), 0);
    // The operator can permit the address; what answers there is not asked for.
    let error = image_config(&with("127.0.0.0/8"), &registry, "1.0").await.expect_err("no blob");
    assert!(!matches!(error, RegistryError::HostRefused { .. }) && other.connections() > 0, "{}", shown(&error));
}

#[tokio::test]
async fn redirects_of_a_blob_have_an_end() {
    let registry = FakeRegistry::start().await;
    registry.push("acme/web", "1.0");
    let client = client(&registry);
    let blob = blob(&client, &registry, "1.0").await;
    registry.forget_requests();
    registry.fault_on(Route::Blob, When::Times(3), Fault::redirect("{path}"));
    client.config(&web(&registry), &blob, &OPERATOR).await.expect("three hops");
    registry.fault_on(Route::Blob, When::Always, Fault::redirect("{path}?secret=s3cret"));
    let error = client.config(&web(&registry), &blob, &OPERATOR).await.expect_err("a circle");
    assert!(matches!(error, RegistryError::Redirected { .. }) && !shown(&error).contains("s3cret"), "{}", shown(&error));
    assert_eq!(registry.count(Route::Blob), 8);
}

#[tokio::test]
async fn nothing_but_blobs_is_redirected() {
    let (registry, other) = (FakeRegistry::start().await, FakeRegistry::start().await);
    registry.push("acme/web", "1.0");
    let client = client(&registry);
    for status in [301, 302, 303, 307, 308] {
        registry.clear_faults();
        registry.fault(Fault::Redirect { status, location: format!("{}{{path}}", other.url()) });
        for error in [
            tags(&client, &registry).await.expect_err("redirected"),
            manifest(&client, &registry, "1.0").await.expect_err("redirected"),
            client.digest(&web(&registry), &tag("1.0"), &OPERATOR).await.expect_err("redirected"),
        ] {
            assert!(matches!(error, RegistryError::Redirected { .. }), "{}", shown(&error));
        }
    }
    assert_eq!(other.connections(), 0);
}
