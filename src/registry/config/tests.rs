use super::*;

fn parse(text: &str) -> Result<RegistriesConfig, ConfigError> {
    RegistriesConfig::parse(text, Path::new("registries.conf"))
}

fn route(config: &RegistriesConfig, image: &str) -> (String, String) {
    let route = config.route(&image.parse().expect(image)).expect(image);
    (route.endpoint.api_url.as_str().trim_end_matches('/').to_owned(), route.path)
}

const ALL_KEYS: &str = "
registries:
  - name: Harbor
    api_url: https://harbor.example.com/
    prefix: harbor.example.com
    ping: yes
    credentials: env:HARBOR
    credsexpire: 11h30m
    tagsortmode: latest-first
    insecure: no
    ca_file: /etc/ca.pem
    defaultns: team
    limit: 20
    default: true
    realms: [https://sso.example.com]
";

#[test]
fn every_key_of_image_updater_is_read() {
    let config = parse(ALL_KEYS).expect("a configuration");
    let endpoint = &config.entries[0];
    assert_eq!(endpoint.api_url.as_str(), "https://harbor.example.com/");
    assert_eq!(endpoint.credentials, Some(Source::Variable("HARBOR".to_owned())));
    assert_eq!(endpoint.credentials_expire, Some(Duration::from_secs(41_400)));
    assert_eq!((endpoint.limit, endpoint.insecure, endpoint.default), (NonZeroU32::new(20), false, true));
    assert_eq!(endpoint.tag_order, Some(TagOrder::LatestFirst));
    assert_eq!(endpoint.ca_file.as_deref(), Some(Path::new("/etc/ca.pem")));
    assert_eq!(config, parse(ALL_KEYS).expect("the same again"));
}

#[test]
fn an_empty_file_declares_nothing() {
    for text in ["", "# none yet\n", "registries:\n", "registries: []\n", "{}"] {
        assert_eq!(parse(text).expect(text), RegistriesConfig::default(), "{text}");
    }
}

#[test]
fn faults_are_named_with_their_place() {
    let entry = |line: &str| format!("registries:\n- name: x\n  api_url: https://x.example\n  prefix: x.example\n  {line}\n");
    for (text, part) in [
        (entry("pnig: true"), "unknown field `pnig`"),
        (entry("limit: fast"), "line 5"),
        (entry("insecure: maybe"), "`maybe` is neither"),
        (entry("tagsortmode: newest"), "tagsortmode"),
        (entry("credentials: HARBOR"), "credentials"),
        (entry("credsexpire: 1d"), "credsexpire"),
        (entry("ca_data: garbage"), "no PEM certificate"),
        (entry("realms: [sso.example.com]"), "realms"),
        (entry("api_url: https://x"), "duplicate"),
        ("registries:\n- name: x\n  prefix: x\n".to_owned(), "api_url"),
        ("registries:\n- {name: x, api_url: 'x.example', prefix: x}\n".to_owned(), "api_url"),
        ("registries:\n- {name: x, api_url: 'https://u:p@x.example', prefix: x}\n".to_owned(), "api_url"),
        ("registries:\n- {name: x, api_url: 'ftp://x.example', prefix: x}\n".to_owned(), "api_url"),
        (format!("{}{}", entry(""), "- {name: y, api_url: 'https://y', prefix: X.example}\n"), "same prefix"),
        (
            format!("{}{}", entry("default: true"), "- {name: y, api_url: 'https://y', prefix: y, default: true}\n"),
            "default already",
        ),
    ] {
        let error = parse(&text).expect_err(&text).to_string();
        assert!(error.contains("registries.conf") && error.contains(part), "{error}\n{text}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = RegistriesConfig::load(Path::new("/nonexistent/registries.conf")).expect_err("no such file");
    assert_eq!(error.to_string(), "could not read `/nonexistent/registries.conf`");
}

/// The longest prefix wins, as in Argo CD Image Updater 1.3.
#[test]
fn repositories_find_their_endpoint() {
    let config = parse(
        "registries:
- {name: proxy, prefix: harbor.x/proxy, api_url: 'https://mirror.x', credentials: 'env:P'}
- {name: deeper, prefix: harbor.x/proxy/deep, api_url: 'https://deep.x/sub'}
- {name: ghcr, prefix: ghcr.io, api_url: 'https://ghcr.io'}
- {name: local, prefix: 'localhost:5000', api_url: 'http://localhost:5000'}
",
    )
    .expect("a configuration");
    for (image, api, path) in [
        ("harbor.x/proxy/a", "https://mirror.x", "proxy/a"),
        ("harbor.x/proxy/deep/a", "https://deep.x/sub", "proxy/deep/a"),
        ("harbor.x/proxy2/a", "https://harbor.x", "proxy2/a"),
        ("harbor.x/a", "https://harbor.x", "a"),
        ("GHCR.io/acme/web", "https://ghcr.io", "acme/web"),
        ("ghcr.i/acme/web", "https://ghcr.i", "acme/web"),
        ("localhost:5000/a/b", "http://localhost:5000", "a/b"),
        ("nginx", "https://registry-1.docker.io", "library/nginx"),
        ("index.docker.io/acme/web", "https://registry-1.docker.io", "acme/web"),
    ] {
        assert_eq!(route(&config, image), (api.to_owned(), path.to_owned()), "{image}");
    }
}

/// Image Updater keeps asking anonymously here.
#[test]
fn a_redeclared_docker_hub_applies_to_images_without_a_registry() {
    let config =
        parse("registries:\n- {name: Hub, prefix: docker.io, api_url: 'https://registry-1.docker.io', credentials: 'env:HUB'}\n");
    let config = config.expect("a configuration");
    for image in ["nginx", "acme/web", "docker.io/nginx"] {
        let route = config.route(&image.parse().expect(image)).expect(image);
        assert_eq!(route.endpoint.credentials, Some(Source::Variable("HUB".to_owned())), "{image}");
        assert!(!route.detour);
    }
    assert_eq!(config.entries[0].limit, NonZeroU32::new(10));
}

#[test]
fn another_default_registry_gets_what_was_written() {
    let config = parse("registries:\n- {name: H, prefix: h.x, api_url: 'https://h.x', default: yes, defaultns: team}\n");
    let config = config.expect("a configuration");
    for (image, path) in [("nginx", "team/nginx"), ("library/nginx", "library/nginx"), ("acme/web", "acme/web")] {
        assert_eq!(route(&config, image), ("https://h.x".to_owned(), path.to_owned()));
        assert!(config.route(&image.parse().expect(image)).expect(image).detour);
    }
    assert_eq!(route(&config, "docker.io/nginx").0, "https://registry-1.docker.io");
    assert_eq!(route(&config, "h.x/nginx").1, "team/nginx");
}

#[test]
fn dockers_name_for_its_credentials_is_not_its_address() {
    let config = parse("registries:\n- {name: Hub, prefix: docker.io, api_url: 'https://index.docker.io/v1/'}\n")
        .expect("a configuration");
    assert_eq!(route(&config, "nginx").0, "https://registry-1.docker.io");
}

/// The values of `tagsortmode`.
#[test]
fn the_order_of_listings_is_read_as_image_updater_reads_it() {
    for (line, order) in [
        ("", None),
        (", tagsortmode: ''", None),
        (", tagsortmode: none", None),
        (", tagsortmode: latest-first", Some(TagOrder::LatestFirst)),
        (", tagsortmode: Latest-Last", Some(TagOrder::LatestLast)),
    ] {
        let text = format!("registries:\n- {{name: x, prefix: x.example, api_url: 'https://x.example'{line}}}\n");
        let config = parse(&text).expect(line);
        assert_eq!(config.entries[0].tag_order, order, "{line}");
        let elsewhere = config.route(&"y.example/a".parse().expect("an image")).expect("a route");
        assert_eq!(elsewhere.endpoint.tag_order, None, "{line}");
    }
}

#[test]
fn limits_are_ours_unless_they_are_said() {
    let limit = |text: &str| {
        let text = format!("registries:\n- {{name: x, prefix: x.example, api_url: 'https://x.example'{text}}}\n");
        parse(&text).expect("a configuration").entries[0].limit.map(NonZeroU32::get)
    };
    assert_eq!((limit(""), limit(", limit: 5"), limit(", limit: 0")), (Some(100), Some(5), None));
}
