//! Manifests and image configurations.

use super::*;

#[tokio::test]
async fn a_tags_digest_costs_one_request_without_body() {
    let registry = FakeRegistry::start().await;
    let pushed = registry.push("acme/web", "1.0");
    let found = client(&registry).digest(&web(&registry), &tag("1.0"), &OPERATOR).await;
    assert_eq!(found.expect("a digest"), digest(&pushed));
    assert_eq!(registry.requests().iter().map(|request| request.method.as_str()).collect::<Vec<_>>(), ["HEAD"]);
}

#[tokio::test]
async fn a_digest_that_is_not_stated_is_computed() {
    let registry = FakeRegistry::start().await;
    let pushed = registry.push("acme/web", "1.0");
    registry.dialect(Dialect::distribution().without_digest_header());
    let found = client(&registry).digest(&web(&registry), &tag("1.0"), &OPERATOR).await;
    assert_eq!(found.expect("a digest"), digest(&pushed));
    for text in ["nonsense", "sha512:00", "sha256:XYZ"] {
        registry.clear_faults();
        registry.fault(Fault::digest(text));
        let found = client(&registry).digest(&web(&registry), &tag("1.0"), &OPERATOR).await;
        assert_eq!(found.expect(text), digest(&pushed));
    }
}

#[tokio::test]
async fn an_unknown_tag_is_not_found() {
    let registry = FakeRegistry::start().await;
    registry.push("acme/web", "1.0");
    let client = client(&registry);
    for error in [
        client.digest(&web(&registry), &tag("2.0"), &OPERATOR).await.expect_err("unknown"),
        manifest(&client, &registry, "2.0").await.expect_err("unknown"),
    ] {
        assert!(matches!(&error, RegistryError::NotFound { what } if what.ends_with("/acme/web:2.0")), "{}", shown(&error));
    }
}

#[tokio::test]
async fn images_of_both_kinds_are_read() {
    let registry = FakeRegistry::start().await;
    let created = "2024-05-06T07:08:09Z";
    for (name, image) in [("oci", Image::new()), ("docker", Image::new().docker())] {
        let image = image
            .created(created)
            .platform("linux/arm64/v8")
            .annotation("org.opencontainers.image.created", "2023-01-01T00:00:00Z");
        let pushed = registry.push_image("acme/web", name, image);
        let client = client(&registry);
        let manifest = manifest(&client, &registry, name).await.expect("a manifest");
        assert_eq!(manifest.digest, digest(&pushed));
        let Content::Image { config, created: annotated } = &manifest.content else { panic!("{manifest:?}") };
        assert_eq!(*annotated, "2023-01-01T00:00:00Z".parse().ok());
        let config = client.config(&web(&registry), config, &OPERATOR).await.expect("a configuration");
        assert_eq!(config.created, created.parse().ok());
        assert_eq!(config.platform, "linux/arm64/v8".parse::<Platform>().ok());
        let by_digest =
            client.manifest(&web(&registry), &ManifestRef::Digest(digest(&pushed)), &OPERATOR).await.expect("by digest");
        assert_eq!(by_digest, manifest);
    }
}

#[tokio::test]
async fn an_index_names_its_platforms() {
    let registry = FakeRegistry::start().await;
    let images = vec![Image::new().platform("linux/amd64"), Image::new().platform("linux/arm/v7")];
    registry.push_index("acme/web", "1.0", images, true);
    let manifest = manifest(&client(&registry), &registry, "1.0").await.expect("a manifest");
    let Content::Index { entries, created: None } = &manifest.content else { panic!("{manifest:?}") };
    let platforms: Vec<_> = entries.iter().map(|entry| entry.platform.as_ref().map(ToString::to_string)).collect();
    assert_eq!(platforms, [Some("linux/amd64".to_owned()), Some("linux/arm/v7".to_owned()), None]);
}

#[tokio::test]
async fn what_is_no_image_is_said_to_be_none() {
    let registry = FakeRegistry::start().await;
    let empty = registry.push_blob("acme/web", "{}");
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let helm = "application/vnd.cncf.helm.config.v1+json";
    let chart = format!(
        r#"{{"schemaVersion":2,"mediaType":"{oci}","config":{{"mediaType":"{helm}","digest":"{empty}","size":2}},"layers":[]}}"#
    );
    registry.push_raw("acme/web", "chart", oci, chart);
    registry.push_raw("acme/web", "old", "application/vnd.docker.distribution.manifest.v1+json", r#"{"schemaVersion":1}"#);
    for (name, expected) in [("chart", helm), ("old", "application/vnd.docker.distribution.manifest.v1+json")] {
        let manifest = manifest(&client(&registry), &registry, name).await.expect(name);
        assert_eq!(manifest.content, Content::Other { media_type: expected.to_owned() });
    }
}

#[tokio::test]
async fn manifests_that_are_none_are_an_error() {
    let registry = FakeRegistry::start().await;
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let config = r#""mediaType":"application/vnd.oci.image.config.v1+json""#;
    for (name, text) in [
        ("json", "{".to_owned()),
        ("empty", "{}".to_owned()),
        ("digest", format!(r#"{{"schemaVersion":2,"config":{{{config},"digest":"sha256:../../x","size":2}},"layers":[]}}"#)),
        ("size", format!(r#"{{"schemaVersion":2,"config":{{{config},"digest":"{}","size":-2}},"layers":[]}}"#, Digest::of(b""))),
        ("deep", "[".repeat(100_000)),
    ] {
        registry.push_raw("acme/web", name, oci, text);
        let error = manifest(&client(&registry), &registry, name).await.expect_err(name);
        assert!(malformed(&error), "{name}: {}", shown(&error));
    }
}

#[tokio::test]
async fn a_manifest_must_be_what_its_digest_says() {
    let registry = FakeRegistry::start().await;
    let pushed = registry.push("acme/web", "1.0");
    for fault in [Fault::wrong_digest(), Fault::Corrupted] {
        registry.clear_faults();
        registry.fault(fault);
        assert!(malformed(&manifest(&client(&registry), &registry, "1.0").await.expect_err("a wrong digest")));
    }
    registry.dialect(Dialect::distribution().without_digest_header());
    let target = ManifestRef::Digest(digest(&pushed));
    assert!(malformed(&client(&registry).manifest(&web(&registry), &target, &OPERATOR).await.expect_err("a wrong digest")));
}

#[tokio::test]
async fn a_manifest_larger_than_allowed_is_an_error() {
    let registry = FakeRegistry::start().await;
    registry.push("acme/web", "1.0");
    let client = client_with(&registry, "", Limits { manifest_bytes: 100, ..limits() });
    assert!(matches!(manifest(&client, &registry, "1.0").await, Err(RegistryError::TooLarge { .. })));
}

#[tokio::test]
async fn a_configuration_must_be_what_its_manifest_says() {
    let registry = FakeRegistry::start().await;
    registry.push_image("acme/web", "1.0", Image::new());
    let client = client(&registry);
    registry.fault_on(Route::Blob, When::Always, Fault::Corrupted);
    assert!(malformed(&image_config(&client, &registry, "1.0").await.expect_err("a wrong digest")));
    registry.clear_faults();
    registry.push_image("acme/web", "small", Image::new().config_size(10));
    assert!(matches!(image_config(&client, &registry, "small").await, Err(RegistryError::TooLarge { .. })));
    registry.push_image("acme/web", "huge", Image::new().config_size(1 << 40));
    registry.forget_requests();
    assert!(matches!(image_config(&client, &registry, "huge").await, Err(RegistryError::TooLarge { .. })));
    assert_eq!(registry.count(Route::Blob), 0);
    registry.push_image("acme/web", "none", Image::new().config("no json"));
    assert!(malformed(&image_config(&client, &registry, "none").await.expect_err("no json")));
}

#[tokio::test]
async fn a_configuration_larger_than_allowed_is_an_error() {
    let registry = FakeRegistry::start().await;
    registry.push_image("acme/web", "1.0", Image::new().padding(10_000));
    assert!(image_config(&client(&registry), &registry, "1.0").await.is_ok());
    let client = client_with(&registry, "", Limits { config_bytes: 10_000, ..limits() });
    assert!(matches!(image_config(&client, &registry, "1.0").await, Err(RegistryError::TooLarge { .. })));
}

/// CVE-2020-15157.
#[tokio::test]
async fn addresses_in_a_manifest_are_never_asked() {
    let (registry, other) = (FakeRegistry::start().await, FakeRegistry::start().await);
    registry.push_image("acme/web", "1.0", Image::new().config_missing().config_url(format!("{}/latest/meta-data", other.url())));
    let error = image_config(&client(&registry), &registry, "1.0").await.expect_err("missing");
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn the_time_of_building_is_found_where_it_is() {
    let registry = FakeRegistry::start().await;
    let client = client(&registry);
    let (oci, old) = ("org.opencontainers.image.created", "org.label-schema.build-date");
    let label = "2024-01-01T00:00:00Z";
    for (name, image, expected) in [
        ("config", Image::new().created("2023-02-03T04:05:06.7Z").label(oci, label), Some("2023-02-03T04:05:06.7Z")),
        ("epoch", Image::new().created("1970-01-01T00:00:00Z").label(oci, label), Some(label)),
        ("zip", Image::new().created("1980-01-01T00:00:01Z").label(old, label), Some(label)),
        ("malformed", Image::new().created("yesterday").label(oci, label), Some(label)),
        ("missing", Image::new().without_created().label(oci, "nonsense").label(old, label), Some(label)),
        ("epoch alone", Image::new().created("1970-01-01T00:00:00Z"), Some("1970-01-01T00:00:00Z")),
        ("nothing", Image::new().without_created().history("nonsense"), None),
    ] {
        let name = name.replace(' ', "-");
        registry.push_image("acme/web", &name, image);
        let config = image_config(&client, &registry, &name).await.expect("a configuration");
        assert_eq!(config.created, expected.map(|text| text.parse().expect("a time")), "{name}");
    }
}
