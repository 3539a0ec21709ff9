//! Listings: dialects, paging, bounds.

use super::*;

#[tokio::test]
async fn every_dialect_is_listed_to_its_end() {
    let dialects = [
        ("distribution", Dialect::distribution()),
        ("debian", Dialect::debian()),
        ("ghcr", Dialect::ghcr()),
        ("docker hub", Dialect::docker_hub()),
        ("ecr", Dialect::ecr()),
        ("acr", Dialect::acr()),
        ("quay", Dialect::quay()),
        ("quay before 2024", Dialect::quay_before_2024()),
        ("gitlab", Dialect::gitlab()),
        ("gitlab unmigrated", Dialect::gitlab_unmigrated()),
        ("harbor", Dialect::harbor()),
        ("artifactory", Dialect::artifactory()),
        ("nexus", Dialect::nexus()),
        ("nexus behind a proxy", Dialect::nexus_behind_proxy()),
        ("zot", Dialect::zot()),
        ("google", Dialect::google()),
        ("without name", Dialect::ghcr().without_name()),
        ("by last alone", Dialect::ghcr().link(Link::Missing)),
        ("by last alone, fifty", Dialect::acr().link(Link::Missing).page(50)),
        ("by last alone, unsorted", Dialect::acr().link(Link::Missing).order(TagOrder::Unsorted)),
        ("larger pages than ours", Dialect { ignores_n: true, ..Dialect::ghcr().page(1500) }),
        ("artifactory in pages", Dialect::artifactory().page(100)),
        ("nexus in pages", Dialect::nexus_behind_proxy().page(100)),
        ("zot in pages", Dialect::zot().page(100)),
    ];
    let registry = FakeRegistry::start().await;
    for count in [0, 1, 50, 100, 101, 250, 1000, 2345, 3500] {
        let path = format!("acme/web{count}");
        registry.create(&path);
        if count > 0 {
            registry.tags(&path, (0..count).map(|at| format!("1.{at}.0")));
        }
    }
    for (name, dialect) in dialects {
        registry.dialect(dialect);
        let client = client(&registry);
        for count in [0, 1, 50, 100, 101, 250, 1000, 2345, 3500] {
            let listing = client.tags(&repository(&registry, &format!("acme/web{count}")), &OPERATOR).await;
            let listing = listing.unwrap_or_else(|error| panic!("{name}, {count} tags: {}", shown(&error)));
            let expected: BTreeSet<Tag> = (0..count).map(|at| tag(&format!("1.{at}.0"))).collect();
            let expected: Vec<&str> = expected.iter().map(Tag::as_str).collect();
            assert_eq!(names(&listing), expected, "{name}, {count} tags");
            assert_eq!(listing.dropped, 0);
        }
    }
}

#[tokio::test]
async fn a_short_listing_costs_one_request() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0", "2.0"]);
    tags(&client(&registry), &registry).await.expect("a listing");
    assert_eq!(registry.count(Route::Any), 1);
    assert_eq!(registry.requests()[0].query, "");
    assert_eq!(registry.requests()[0].header("user-agent"), Some(concat!("pinion/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(registry.requests()[0].header("accept-encoding"), None);
}

#[tokio::test]
async fn a_registry_that_ignores_paging_is_probed_once() {
    let registry = FakeRegistry::start().await;
    registry.dialect(Dialect::debian());
    registry.tags("acme/web", (0..100).map(|at| format!("{at}")));
    assert_eq!(tags(&client(&registry), &registry).await.expect("a listing").tags.len(), 100);
    assert_eq!(registry.count(Route::Tags), 2);
}

#[tokio::test]
async fn a_page_size_that_is_refused_is_not_asked_for_again() {
    let registry = FakeRegistry::start().await;
    registry.dialect(Dialect::quay());
    registry.tags("acme/web", (0..350).map(|at| format!("{at}")));
    assert_eq!(tags(&client(&registry), &registry).await.expect("a listing").tags.len(), 350);
    let sized = registry.requests().iter().filter(|request| request.parameter("n").as_deref() == Some("1000")).count();
    assert_eq!((sized, registry.count(Route::Tags)), (1, 5));
}

#[tokio::test]
async fn a_cursor_lost_to_a_deletion_is_worth_one_new_start() {
    let registry = FakeRegistry::start().await;
    registry.dialect(Dialect::zot().page(2));
    registry.tags("acme/web", ["1", "2", "3", "4"]);
    registry.fault_on(Route::Tags, When::Only(2), Fault::status(404));
    assert_eq!(names(&tags(&client(&registry), &registry).await.expect("a listing")), ["1", "2", "3", "4"]);

    registry.clear_faults();
    registry.fault_on(Route::Tags, When::Only(2), Fault::status(404));
    registry.fault_on(Route::Tags, When::Only(4), Fault::status(404));
    assert!(unavailable(&tags(&client(&registry), &registry).await.expect_err("twice")));
}

#[tokio::test]
async fn an_error_on_any_page_is_an_error_of_the_listing() {
    let registry = FakeRegistry::start().await;
    registry.dialect(Dialect::ghcr().page(2));
    registry.tags("acme/web", (0..10).map(|at| format!("{at}")));
    for fault in [Fault::status(500), Fault::status(403), Fault::status(418), Fault::garbage(), Fault::Truncated, Fault::Drop] {
        registry.clear_faults();
        registry.fault_on(Route::Tags, When::After(3), fault.clone());
        assert!(tags(&client(&registry), &registry).await.is_err(), "{fault:?}");
    }
}

#[tokio::test]
async fn links_never_lead_to_another_host() {
    let (registry, other) = (FakeRegistry::start().await, FakeRegistry::start().await);
    registry.tags("acme/web", ["1", "2", "3"]);
    let link = format!("<{}/v2/acme/web/tags/list?last=2>; rel=\"next\"", other.url());
    let page = Fault::answer(200, r#"{"tags":["1","2"]}"#).with_header("link", &link);
    registry.fault_on(Route::Tags, When::Times(1), page);
    assert_eq!(names(&tags(&client(&registry), &registry).await.expect("a listing")), ["1", "2", "3"]);
    assert_eq!((registry.count(Route::Tags), other.connections()), (2, 0));
}

#[tokio::test]
async fn pages_in_a_circle_are_an_error() {
    let registry = FakeRegistry::start().await;
    registry.create("acme/web");
    registry.fault(Fault::EndlessPages(Cursor::Same));
    assert!(malformed(&tags(&client(&registry), &registry).await.expect_err("a circle")));
    assert!(registry.count(Route::Tags) < 5);
}

#[tokio::test]
async fn pages_without_end_are_an_error() {
    let registry = FakeRegistry::start().await;
    registry.create("acme/web");
    registry.fault(Fault::EndlessPages(Cursor::New));
    for dialect in [Dialect::ghcr(), Dialect::ghcr().link(Link::Missing)] {
        registry.dialect(dialect);
        registry.forget_requests();
        let error = tags(&client_with(&registry, "", Limits { pages: 7, ..limits() }), &registry).await.expect_err("endless");
        assert!(matches!(error, RegistryError::TooLarge { .. }), "{error}");
        assert_eq!(registry.count(Route::Tags), 7);
    }
}

#[tokio::test]
async fn more_tags_than_allowed_are_an_error() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", (0..60).map(|at| format!("{at}")));
    let bounded = |tags| client_with(&registry, "", Limits { tags, ..limits() });
    assert_eq!(tags(&bounded(60), &registry).await.expect("as many as allowed").tags.len(), 60);
    assert!(matches!(tags(&bounded(59), &registry).await, Err(RegistryError::TooLarge { .. })));
    registry.dialect(Dialect::ghcr().page(25));
    assert!(matches!(tags(&bounded(59), &registry).await, Err(RegistryError::TooLarge { .. })));
}

#[tokio::test]
async fn a_page_larger_than_allowed_is_an_error() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    let client = client_with(&registry, "", Limits { page_bytes: 100, ..limits() });
    assert!(tags(&client, &registry).await.is_ok());
    registry.tags("acme/web", (0..20).map(|at| format!("long-enough-{at}")));
    assert!(matches!(tags(&client, &registry).await, Err(RegistryError::TooLarge { .. })));
}

#[tokio::test]
async fn a_body_without_end_is_read_no_further_than_allowed() {
    let registry = FakeRegistry::start().await;
    registry.create("acme/web");
    registry.fault(Fault::EndlessBody);
    let error = tags(&client(&registry), &registry).await.expect_err("endless");
    assert!(matches!(error, RegistryError::TooLarge { .. }) && error.to_string().contains("32 MiB"), "{error}");
}

#[tokio::test]
async fn illegal_names_are_counted_and_left_out() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0", "2.0"]);
    for name in ["a b", "../../x", "a\nb", "$(pin x)", "тест", "\u{202e}x", ""] {
        registry.raw_tag("acme/web", name);
    }
    for dialect in [Dialect::distribution(), Dialect::ghcr().page(2)] {
        registry.dialect(dialect);
        let listing = tags(&client(&registry), &registry).await.expect("a listing");
        assert_eq!((names(&listing), listing.dropped), (vec!["1.0", "2.0"], 7));
    }
}

#[tokio::test]
async fn googles_listings_bring_digests_and_times() {
    let registry = FakeRegistry::start().await;
    registry.dialect(Dialect::google());
    let pushed = registry.push_built("acme/web", "1.0", "2024-03-01T12:00:00Z");
    registry.push_built("acme/web", "epoch", "1970-01-01T00:00:00Z");
    let listing = tags(&client(&registry), &registry).await.expect("a listing");
    assert_eq!(listing.tags[0].digest, Some(digest(&pushed)));
    assert_eq!(listing.tags[0].created, "2024-03-01T12:00:00Z".parse().ok());
    assert_eq!((listing.tags[1].tag.as_str(), listing.tags[1].created), ("epoch", None));
}

/// Names in the order of their positions.
fn by_position(listing: &Listing) -> Vec<&str> {
    let mut tags: Vec<_> = listing.tags.iter().map(|listed| (listed.position, listed.tag.as_str())).collect();
    tags.sort_unstable();
    let positions: Vec<_> = tags.iter().map(|(position, _)| *position).collect();
    assert_eq!(positions, (0..).map(Some).take(tags.len()).collect::<Vec<_>>(), "from 0, without gaps");
    tags.into_iter().map(|(_, name)| name).collect()
}

#[tokio::test]
async fn positions_go_on_over_the_pages() {
    let registry = FakeRegistry::start().await;
    let pushed: Vec<String> = (0..120).map(|at| format!("build-{}", at * 7919 % 120)).collect();
    registry.tags("acme/web", &pushed);
    registry.raw_tag("acme/web", "no tag");
    let dialects = [
        ("in one page", Dialect::debian()),
        ("by link", Dialect::ghcr().page(50)),
        ("by an opaque link", Dialect::quay_before_2024()),
        ("by last alone", Dialect::acr().link(Link::Missing).page(50)),
    ];
    for (mode, order) in [("latest-last", TagOrder::OldestFirst), ("latest-first", TagOrder::NewestFirst)] {
        for (name, dialect) in &dialects {
            registry.dialect(dialect.clone().order(order));
            let client = client_with(&registry, &format!("  tagsortmode: {mode}\n"), limits());
            let listing = tags(&client, &registry).await.expect("a listing");
            assert!(names(&listing).is_sorted() && listing.is_ordered(), "{mode}, {name}");
            assert_eq!(
                (by_position(&listing), listing.dropped),
                (pushed.iter().map(String::as_str).collect(), 1),
                "{mode}, {name}"
            );
        }
    }
}

#[tokio::test]
async fn a_tag_that_a_page_repeats_keeps_its_first_position() {
    let registry = FakeRegistry::start().await;
    registry.create("acme/web");
    let page = |tags: &str| Fault::answer(200, &format!(r#"{{"tags":[{tags}]}}"#));
    for (mode, expected) in [("latest-first", ["1", "2", "3", "4"]), ("latest-last", ["4", "3", "2", "1"])] {
        registry.clear_faults();
        registry.fault_on(Route::Tags, When::Times(1), page(r#""4","3","4""#).with_header("link", "<?last=3>; rel=next"));
        registry.fault_on(Route::Tags, When::Always, page(r#""3","2","4","1""#));
        let client = client_with(&registry, &format!("  tagsortmode: {mode}\n"), limits());
        assert_eq!(by_position(&tags(&client, &registry).await.expect("a listing")), expected, "{mode}");
    }
}

#[tokio::test]
async fn without_tagsortmode_the_order_of_a_listing_is_forgotten() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["b", "a"]);
    registry.dialect(Dialect::ghcr());
    for (line, identity) in [
        ("", "anonymous"),
        ("  tagsortmode: none\n", "anonymous"),
        ("  tagsortmode: latest-first\n", "latest-first anonymous"),
        ("  tagsortmode: latest-last\n", "latest-last anonymous"),
    ] {
        let client = client_with(&registry, line, limits());
        let listing = tags(&client, &registry).await.expect("a listing");
        let is_ordered = identity != "anonymous";
        assert!(listing.tags.iter().all(|listed| listed.position.is_some() == is_ordered), "{line}");
        assert_eq!(client.identity(&web(&registry), &OPERATOR), identity, "answers by different orders are kept apart");
    }
}

#[tokio::test]
async fn an_unknown_repository_is_not_found() {
    let registry = FakeRegistry::start().await;
    let error = tags(&client(&registry), &registry).await.expect_err("unknown");
    assert!(matches!(&error, RegistryError::NotFound { what } if what.ends_with("/acme/web")), "{error}");
    registry.fault(Fault::Status { status: 404, headers: Vec::new(), body: b"no such page".to_vec() });
    assert!(malformed(&tags(&client(&registry), &registry).await.expect_err("no registry there")));
}

/// What a proxy that asks people to log in sends, whatever is asked for.
#[tokio::test]
async fn a_login_page_is_told_from_a_registry() {
    let page = "\n<!DOCTYPE html><html><head><title>Sign in to\n  Acme</title></head><body>…</body></html>";
    let header = |value: &str| vec![("content-type".to_owned(), value.to_owned())];
    for (status, headers) in
        [(200, header("text/html; charset=utf-8")), (200, Vec::new()), (404, header("text/html")), (502, header("text/html"))]
    {
        let registry = FakeRegistry::start().await;
        registry.tags("acme/web", ["1.0"]);
        registry.fault(Fault::Status { status, headers, body: page.as_bytes().to_vec() });
        let error = tags(&client(&registry), &registry).await.expect_err("a page");
        if status == 502 {
            // A gateway's own page says no more than its status.
            assert!(matches!(error, RegistryError::Unavailable { .. }), "{}", shown(&error));
            continue;
        }
        let (host, url) = (registry.host(), registry.url());
        assert_eq!(
            error.to_string(),
            format!(
                "registry `{host}` sent a web page (`Sign in to Acme`) instead of JSON: `{url}/v2/acme/web/tags/list` answered {status}"
            )
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("`api_url`")), "{}", shown(&error));
    }
}
