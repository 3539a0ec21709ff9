//! The examples as their READMEs promise them: development and production, before and after newer tags are pushed.

use std::path::{Path, PathBuf};

use crate::fixtures::{copy, needs, snapshot};
use crate::support::driver::{Driver, Ran, root};
use crate::support::examples::{APPLICATIONS, fill, push_later};
use crate::support::registry::FakeRegistry;

/// An example in an environment: its images before and after [`push_later`]. A digest is written `@`.
const PROMISED: [(&str, &str, &[&str], &[&str]); 12] = [
    ("chat-api", "dev", &["ghcr.io/justgithubaccount/chat-api:1.0.2"], &["ghcr.io/justgithubaccount/chat-api:1.0.3"]),
    ("chat-api", "prd", &["ghcr.io/justgithubaccount/chat-api:1.0.2"], &["ghcr.io/justgithubaccount/chat-api:1.0.3"]),
    ("example-api", "dev", &["shykhovmyron/example-api:0.1.0-rc.1"], &["shykhovmyron/example-api:0.1.0-rc.2"]),
    ("example-api", "prd", &["shykhovmyron/example-api:0.0.9"], &["shykhovmyron/example-api:0.0.9"]),
    (
        "frontend-backend",
        "dev",
        &["lyzhang1999/frontend:main-9c41aa7", "lyzhang1999/backend:main-3af7b60"],
        &["lyzhang1999/frontend:main-1d2e3f4", "lyzhang1999/backend:main-a0b1c2d"],
    ),
    (
        "frontend-backend",
        "prd",
        &["lyzhang1999/frontend:main-9c41aa7", "lyzhang1999/backend:main-e5c0d19"],
        &["lyzhang1999/frontend:main-1d2e3f4", "lyzhang1999/backend:main-e5c0d19"],
    ),
    ("latest-by-digest", "dev", &["ghcr.io/acme/web:latest@"], &["ghcr.io/acme/web:latest@"]),
    ("latest-by-digest", "prd", &["ghcr.io/acme/web:2.0.1@"], &["ghcr.io/acme/web:2.1.0@"]),
    (
        "plain-manifests",
        "dev",
        &[
            "ghcr.io/acme/worker:1.4.0",
            "ghcr.io/acme/web:2.1.0-rc.1",
            "ghcr.io/acme/worker:main-2b9d4c7",
            "ghcr.io/acme/worker:1.4.0",
        ],
        &["ghcr.io/acme/worker:1.4.1", "ghcr.io/acme/web:2.1.0", "ghcr.io/acme/worker:main-0c5a7e9", "ghcr.io/acme/worker:1.4.1"],
    ),
    (
        "plain-manifests",
        "prd",
        &["ghcr.io/acme/worker:1.4.0", "ghcr.io/acme/web:2.0.1", "ghcr.io/acme/worker:main-2b9d4c7", "ghcr.io/acme/worker:1.4.0"],
        &["ghcr.io/acme/worker:1.4.1", "ghcr.io/acme/web:2.1.0", "ghcr.io/acme/worker:main-0c5a7e9", "ghcr.io/acme/worker:1.4.1"],
    ),
    (
        "umbrella",
        "dev",
        &["ghcr.io/acme/web:2.1.0-rc.1", "ghcr.io/acme/worker:1.4.0"],
        &["ghcr.io/acme/web:2.1.0", "ghcr.io/acme/worker:1.4.1"],
    ),
    (
        "umbrella",
        "prd",
        &["ghcr.io/acme/cache:7.2.4", "ghcr.io/acme/web:2.0.1", "ghcr.io/acme/worker:1.4.0"],
        &["ghcr.io/acme/cache:7.2.5", "ghcr.io/acme/web:2.1.0", "ghcr.io/acme/worker:1.4.1"],
    ),
];

fn directory(example: &str, environment: &str) -> &'static str {
    let (_, _, directories) = APPLICATIONS.into_iter().find(|(name, ..)| *name == example).expect("an example");
    directories[usize::from(environment == "prd")]
}

fn render(driver: &Driver, examples: &Path, example: &str, environment: &str) -> Ran {
    let path = |below: String| examples.join(below).display().to_string();
    let application = path(format!("{example}/application-{environment}.yaml"));
    driver.run(["generate".to_owned(), path(directory(example, environment).to_owned()), "--application".to_owned(), application])
}

/// The images of a text, in order; digests cut off behind their `@`.
fn images(manifests: &str) -> Vec<String> {
    let lines = manifests.lines().map(|line| line.trim_start_matches([' ', '-']));
    let values = lines.filter_map(|line| line.strip_prefix("image: ")).map(|value| value.trim_matches('"'));
    values.map(|image| image.split_once('@').map_or(image.to_owned(), |(name, _)| format!("{name}@"))).collect()
}

fn has_tools() -> bool {
    needs("helm") && needs("kustomize")
}

#[tokio::test]
async fn each_environment_runs_the_images_that_its_readme_names() {
    if !has_tools() {
        return;
    }
    let registry = FakeRegistry::start().await;
    fill(&registry);
    let driver = Driver::new(env!("CARGO_BIN_EXE_pinion"), &registry).impatient();
    let examples = root().join("examples");
    let mut digests = Vec::new();
    for (example, environment, before, _) in PROMISED {
        let manifests = render(&driver, &examples, example, environment).ok();
        assert_eq!(images(&manifests), before, "{example} {environment}");
        assert!(!manifests.contains("$(pin"), "{example} {environment}: {manifests}");
        digests.push(manifests);
    }
    push_later(&registry);
    for ((example, environment, _, after), earlier) in PROMISED.into_iter().zip(digests) {
        let manifests = render(&driver, &examples, example, environment).ok();
        assert_eq!(images(&manifests), after, "{example} {environment}, later");
        let is_held = (example, environment) == ("example-api", "prd");
        assert_eq!(manifests == earlier, is_held, "{example} {environment}: only what a newer tag concerns changes");
    }
}

#[tokio::test]
async fn the_directory_is_only_read() {
    if !has_tools() {
        return;
    }
    let registry = FakeRegistry::start().await;
    fill(&registry);
    let driver = Driver::new(env!("CARGO_BIN_EXE_pinion"), &registry);
    let place = tempfile::tempdir().expect("a directory");
    let examples: PathBuf = place.path().join("examples");
    copy(&root().join("examples"), &examples);
    let before = snapshot(&examples);
    for (example, environment, _, _) in PROMISED {
        render(&driver, &examples, example, environment).ok();
        assert!(snapshot(&examples) == before, "{example} {environment} changed the directory");
    }
}

/// The store is all that a render leaves behind.
#[tokio::test]
async fn examples_render_from_the_last_known_good_pins_while_the_registry_is_down() {
    if !has_tools() {
        return;
    }
    let registry = FakeRegistry::start().await;
    fill(&registry);
    let driver = Driver::new(env!("CARGO_BIN_EXE_pinion"), &registry).impatient();
    let all = || -> Vec<Ran> {
        PROMISED
            .into_iter()
            .map(|(example, environment, _, _)| render(&driver, &root().join("examples"), example, environment))
            .collect()
    };
    let before: Vec<String> = all().into_iter().map(Ran::ok).collect();
    registry.stop();
    for (run, before) in all().into_iter().zip(before) {
        assert!(run.stderr.contains("serving the last known good pin"), "{}", run.stderr);
        assert_eq!(run.ok(), before);
    }
}
