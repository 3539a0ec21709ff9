//! One tenant's repositories against another one's: hostile registries take their own tenant's share of memory, turns and time, and no more.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pinion::server::proto::AppStreamRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::serve::generate;
use crate::support::argocd::{Serving, archive, messages};
use crate::support::driver::{Driver, entries};
use crate::support::registry::FakeRegistry;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pinion");

/// Repositories of the hostile registry, and tags of each.
const REPOSITORIES: usize = 50;
const TAGS: usize = 250_000;

/// What is sent at a time.
const PIECE: usize = 64 << 10;

/// A registry of huge repositories: of every five, three have 250,000 tags, one sends its tags slowly for ever, one sends a page without end.
struct Hostile {
    address: SocketAddr,
    /// Connections that were answered in full.
    answered: Arc<AtomicUsize>,
}

impl Hostile {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let answered = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&answered);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    if answer(stream).await.is_ok() {
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        Self { address, answered }
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let path = String::from_utf8_lossy(&head).split(' ').nth(1).unwrap_or_default().to_owned();
    let number: usize = path.split(['/', '-']).find_map(|part| part.parse().ok()).unwrap_or(0);
    let (tags, pause) = match number % 5 {
        0 => (usize::MAX, Duration::from_millis(500)),
        1 => (usize::MAX, Duration::ZERO),
        _ => (TAGS, Duration::ZERO),
    };
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{\"name\":\"x\",\"tags\":[")
        .await?;
    let mut sent = 0;
    let mut piece = String::new();
    while sent < tags {
        piece.clear();
        while piece.len() < PIECE && sent < tags {
            let comma = if sent == 0 { "" } else { "," };
            piece.push_str(&format!("{comma}\"1.0.{sent}\""));
            sent += 1;
        }
        stream.write_all(piece.as_bytes()).await?;
        tokio::time::sleep(pause).await;
    }
    stream.write_all(b"]}").await?;
    stream.shutdown().await
}

/// The request for an application of a project with one pod.
fn request(project: &str, name: &str, image: &str) -> Vec<AppStreamRequest> {
    let checkout = tempfile::tempdir().expect("a directory");
    fs::create_dir(checkout.path().join("app")).expect("made");
    let pod =
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: x}}\nspec: {{containers: [{{name: x, image: '{image}'}}]}}\n");
    fs::write(checkout.path().join("app/pod.yaml"), pod).expect("written");
    let environment = [("ARGOCD_APP_NAME", name), ("ARGOCD_APP_SOURCE_PATH", "app"), ("ARGOCD_APP_PROJECT_NAME", project)];
    let environment: Vec<_> = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    messages(&archive(checkout.path()), "app", &environment, 1 << 20)
}

/// A line of `/proc/<pid>/status` in kilobytes.
fn memory(serving: &Serving, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", serving.child.id())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(field)).expect(field);
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

fn metric(text: &str, name: &str) -> u64 {
    let of = |line: &str| line.rsplit(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
    text.lines().filter(|line| line.starts_with(name)).map(of).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_hostile_repositories_starve_nobody_and_stay_within_the_budget() {
    const BUDGET: u64 = 32 << 20;
    /// What is under way beside the budget: two large listings of one tenant, read and chosen from.
    const UNDER_WAY: u64 = 2 * 150;
    let (registry, hostile) = (FakeRegistry::start().await, Hostile::start().await);
    registry.tags("acme/web", ["1.0.0"]);
    let more = format!("- name: hostile\n  prefix: '{0}'\n  api_url: http://{0}\n  limit: 0\n", hostile.address);
    let driver = Driver::with_entries(PROGRAM, &(entries(&registry, "") + &more)).impatient();
    let serving = Arc::new(Serving::start(PROGRAM, &driver, &["--cache-bytes", &BUDGET.to_string(), "--renders-at-once", "2"]));
    let honest = async || generate(&serving, request("honest", "honest", "ghcr.io/acme/web:$(pin ~1)")).await;
    assert!(honest().await.expect("manifests").contains("web:1.0.0"));
    let before = memory(&serving, "VmRSS");
    let attacks: Vec<_> = (0..REPOSITORIES)
        .map(|number| {
            let image = format!("{}/hostile/repository-{number}:$(pin ~1)", hostile.address);
            let (serving, request) = (Arc::clone(&serving), request("hostile", &format!("hostile-{number}"), &image));
            tokio::spawn(async move { generate(&serving, request).await })
        })
        .collect();
    let is_under_way = || attacks.iter().filter(|attack| !attack.is_finished()).count();
    let mut fresh = 0;
    let mut number = 0;
    // As long as the attack goes on, and at least so often.
    while is_under_way() > 0 || fresh < 5 {
        number += 1;
        let tag = format!("1.0.{number}");
        registry.tags("acme/web", [tag.clone()]);
        let manifests = honest().await.expect("the honest tenant has its manifests");
        assert!(manifests.contains(&format!("web:{tag}")), "and its newest tag: {manifests}");
        fresh += usize::from(is_under_way() > 0);
        assert!(metric(&serving.get("/metrics").await, "pinion_memory_bytes") <= BUDGET);
        if fresh >= 20 && hostile.answered.load(Ordering::SeqCst) >= 6 {
            break;
        }
    }
    assert!(fresh >= 5, "{fresh} of {number} while {} were under way", is_under_way());
    let peak = memory(&serving, "VmHWM");
    let bound = before + BUDGET / 1024 + UNDER_WAY * 1024;
    assert!(peak <= bound, "{peak} kB, at most {bound} kB, {before} kB before");
    let stale = metric(&serving.get("/metrics").await, "pinion_stale_pins_total");
    attacks.iter().for_each(tokio::task::JoinHandle::abort);
    registry.stop();
    // What it had is still there in an outage.
    let manifests = honest().await.expect("manifests");
    assert!(manifests.contains(&format!("web:1.0.{number}")), "{manifests}");
    assert_eq!(metric(&serving.get("/metrics").await, "pinion_stale_pins_total"), stale + 1);
}

/// One render may ask so much; a render that asks more is refused before anything is asked.
#[tokio::test(flavor = "multi_thread")]
async fn the_questions_of_one_render_are_bounded() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", (0..20).map(|minor| format!("1.{minor}.0")));
    let driver = Driver::new(PROGRAM, &registry);
    let dir = tempfile::tempdir().expect("a directory");
    let write = |count: usize| {
        let line = |number: usize| format!("  p{number}: ghcr.io/acme/web:$(pin >=1.0.0 <1.99.{number})\n");
        let lines: String = (0..count).map(line).collect();
        let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: x}}\ndata:\n{lines}");
        fs::write(dir.path().join("map.yaml"), text).expect("written");
    };
    let driver = driver.env("ARGOCD_APP_NAME", "x");
    write(1000);
    let manifests = driver.run(["generate", &dir.path().display().to_string()]).ok();
    assert_eq!(manifests.matches("acme/web:1.19.0").count(), 1000);
    registry.forget_requests();
    write(10_000);
    let error = driver.run(["generate", &dir.path().display().to_string()]).err();
    assert!(error.contains("it asks 10000 different questions about images, at most 1000 are answered"), "{error}");
    assert!(error.contains("hint: "), "{error}");
    assert!(registry.requests().is_empty());
}

/// A thousand questions about a huge repository would take all processors for minutes.
#[tokio::test(flavor = "multi_thread")]
async fn the_tags_that_one_render_looks_at_are_bounded() {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", (0..60_000).map(|patch| format!("1.0.{patch}")));
    let driver = Driver::new(PROGRAM, &registry).env("ARGOCD_APP_NAME", "x").env("PINION_LOOKUP_TIMEOUT", "100s");
    let dir = tempfile::tempdir().expect("a directory");
    let line = |number: usize| format!("  p{number}: ghcr.io/acme/web:$(pin >=1.0.0 <1.99.{number})\n");
    let lines: String = (0..40).map(line).collect();
    let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: x}}\ndata:\n{lines}");
    fs::write(dir.path().join("map.yaml"), text).expect("written");
    let error = driver.run(["generate", &dir.path().display().to_string()]).err();
    assert!(error.contains("all questions of the render together look at too many tags"), "{error}");
    assert!(error.contains("hint: let images of large repositories share policies"), "{error}");
}
