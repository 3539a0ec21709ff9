//! Outages, limits and deadlines.

use super::*;

#[tokio::test]
async fn what_passes_is_asked_again() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    for fault in [
        Fault::status(408),
        Fault::status(429),
        Fault::status(500),
        Fault::status(503),
        Fault::Drop,
        Fault::Truncated,
        Fault::Hang,
    ] {
        registry.clear_faults();
        registry.forget_requests();
        registry.fault_on(Route::Tags, When::Times(2), fault.clone());
        // Only silence has to be waited for.
        let read_timeout = if matches!(fault, Fault::Hang) { Duration::from_secs(3) } else { limits().read_timeout };
        let client = client_with(&registry, "", Limits { read_timeout, ..limits() });
        let listing = tags(&client, &registry).await;
        assert!(listing.is_ok(), "{fault:?}: {}", shown(&listing.expect_err("an error")));
        assert_eq!(registry.count(Route::Tags), 3);
    }
}

#[tokio::test]
async fn what_does_not_pass_is_given_up_after_three_attempts() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    for (fault, transient) in
        [(Fault::status(500), true), (Fault::status(429), true), (Fault::Drop, true), (Fault::Truncated, true)]
    {
        registry.clear_faults();
        registry.forget_requests();
        registry.fault(fault);
        let error = tags(&client(&registry), &registry).await.expect_err("an outage");
        assert_eq!((registry.count(Route::Tags), error.is_transient()), (3, transient), "{}", shown(&error));
    }
}

#[tokio::test]
async fn what_is_no_outage_is_asked_once() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    for fault in [Fault::status(400), Fault::status(404), Fault::status(501), Fault::redirect("/"), Fault::garbage()] {
        registry.clear_faults();
        registry.forget_requests();
        registry.fault(fault.clone());
        let error = tags(&client(&registry), &registry).await.expect_err("an error");
        assert_eq!((registry.count(Route::Tags), error.is_transient()), (1, false), "{fault:?} {}", shown(&error));
    }
}

#[tokio::test]
async fn a_registry_that_is_down_is_unavailable() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    let client = client(&registry);
    tags(&client, &registry).await.expect("a listing");
    registry.stop();
    assert!(unavailable(&tags(&client, &registry).await.expect_err("down")));
    registry.resume();
    tags(&client, &registry).await.expect("a listing");
}

#[tokio::test]
async fn a_limit_is_waited_for_as_the_registry_asks() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    registry.fault_on(Route::Tags, When::Times(1), Fault::too_many_requests("1"));
    tags(&client(&registry), &registry).await.expect("a listing");
    let requests = registry.requests();
    assert!(requests[1].at - requests[0].at >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_limit_longer_than_the_deadline_is_an_error_at_once() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    for (text, seconds) in [("3600", 3600), ("18446744073709551615", u64::MAX)] {
        registry.clear_faults();
        registry.forget_requests();
        registry.fault(Fault::too_many_requests(text));
        let error = tags(&client(&registry), &registry).await.expect_err("limited");
        assert!(
            matches!(error, RegistryError::Limited { retry_after: Some(wait), .. } if wait.as_secs() == seconds),
            "{error:?}"
        );
        assert_eq!(registry.count(Route::Tags), 1);
    }
}

#[tokio::test]
async fn nonsense_in_retry_after_is_no_wait() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0"]);
    for text in ["soon", "-5", "", "Sun, 06 Nov 1994 08:49:37 GMT"] {
        registry.clear_faults();
        registry.fault_on(Route::Tags, When::Times(1), Fault::too_many_requests(text));
        // A wait of years would be longer than the deadline, and an error.
        tags(&client(&registry), &registry).await.expect(text);
    }
}

#[tokio::test]
async fn no_call_outlives_its_deadline() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", (0..100).map(|at| format!("{at}")));
    let slow = Fault::SlowBody { chunk: 1, every: Duration::from_secs(10) };
    for fault in [Fault::Hang, slow, Fault::SlowHeaders(Duration::from_secs(60)), Fault::status(500)] {
        registry.clear_faults();
        registry.fault(fault.clone());
        let impatient = Limits { deadline: Duration::from_millis(400), read_timeout: Duration::from_secs(60), ..limits() };
        let began = Instant::now();
        let error = tags(&client_with(&registry, "", impatient), &registry).await.expect_err("late");
        assert!(unavailable(&error) && began.elapsed() < Duration::from_secs(50), "{fault:?} {}", shown(&error));
    }
}

#[tokio::test]
async fn a_slow_registry_that_goes_on_is_waited_for() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", (0..100).map(|at| format!("{at}")));
    registry.fault(Fault::SlowBody { chunk: 50, every: Duration::from_millis(500) });
    let client = client_with(&registry, "", Limits { read_timeout: Duration::from_secs(3), ..limits() });
    assert_eq!(tags(&client, &registry).await.expect("a listing").tags.len(), 100);
}

#[tokio::test]
async fn a_registry_is_asked_by_twenty_at_one_time() {
    let registry = FakeRegistry::start().await;
    for at in 0..60 {
        registry.push("acme/web", &format!("{at}"));
    }
    let gate = Gate::default();
    registry.fault(Fault::Held(gate.clone()));
    let client = client(&registry);
    let web = web(&registry);
    let names: Vec<Tag> = (0..60).map(|at| tag(&format!("{at}"))).collect();
    let all = futures::future::join_all(names.iter().map(|name| client.digest(&web, name, &OPERATOR)));
    let (all, ()) = tokio::join!(all, async {
        until("fewer than twenty", async || registry.most_at_once() >= 20).await;
        gate.open();
    });
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(registry.most_at_once(), 20);
    assert!(registry.connections() <= 21, "{}", registry.connections());
}

#[tokio::test]
async fn a_registry_is_asked_no_faster_than_its_limit() {
    let registry = FakeRegistry::start().await;
    registry.push("acme/web", "1.0");
    let (host, url) = (registry.host(), registry.url());
    let text = format!("registries: [{{name: fake, prefix: '{host}', api_url: '{url}', limit: 50}}]");
    let client = Client::new(RegistriesConfig::parse(&text, Path::new("x")).expect("a configuration"), limits());
    let (web, name) = (web(&registry), tag("1.0"));
    let began = Instant::now();
    for _ in 0..120 {
        client.digest(&web, &name, &OPERATOR).await.expect("a digest");
    }
    // A hundred at once, twenty at fifty a second.
    assert!(began.elapsed() >= Duration::from_millis(380), "{:?}", began.elapsed());
}
