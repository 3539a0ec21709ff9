//! The examples, with their placeholders replaced by hand, against the tool that renders them.

use super::{assert_same, has_tools, native};
use crate::fixtures::copy;
use crate::support::driver::{Driver, root};
use crate::support::examples::{APPLICATIONS, fill};
use crate::support::registry::FakeRegistry;

/// What the placeholders of the examples become with the tags of `registry.json`.
const TAGS: [(&str, &str); 9] = [
    ("$(pin ~1.0)", "1.0.2"),
    ("$(pin ~0-0)", "0.1.0-rc.1"),
    ("$(pin ~0)", "0.0.9"),
    ("$(pin ~2-0)", "2.1.0-rc.1"),
    ("$(pin ~2 --with-digest)", "2.0.1@DIGEST"),
    ("$(pin digest latest)", "latest@DIGEST"),
    ("$(pin ~2)", "2.0.1"),
    ("$(pin ~7)", "7.2.4"),
    ("$(pin newest-build --allow-tags ^main-)", "main-2b9d4c7"),
];

/// The tool's arguments for an example, in its directory. A plain directory has none.
fn arguments(example: &str, environment: &str) -> Vec<String> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect();
    let namespace = match example {
        "chat-api" => "chat",
        "example-api" => "example",
        example => example,
    };
    let helm = |middle: &str| {
        words(&format!(
            "template . --name-template {example}-{environment} --namespace {namespace}-{environment} {middle}--include-crds"
        ))
    };
    match (example, environment) {
        ("chat-api", _) => helm(&format!("--values clusters/{environment}/chat-values.yaml ")),
        ("example-api" | "umbrella", _) => helm(&format!("--values values-{environment}.yaml ")),
        ("frontend-backend", "dev") => helm(
            "--set-string frontend.image=lyzhang1999/frontend --set-string frontend.tag=main-9c41aa7 \
             --set-string backend.image=lyzhang1999/backend --set-string backend.tag=main-3af7b60 ",
        ),
        ("frontend-backend", _) => helm(
            "--set backend.replicas=2 --set frontend.replicas=3 --set-string frontend.image=lyzhang1999/frontend \
             --set-string frontend.tag=main-9c41aa7 --set-string backend.image=lyzhang1999/backend --set-string backend.tag=main-e5c0d19 ",
        ),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn examples_are_what_the_tool_gives_with_the_tags_written_by_hand() {
    if !has_tools() {
        return;
    }
    let registry = FakeRegistry::start().await;
    fill(&registry);
    let driver = Driver::new(env!("CARGO_BIN_EXE_pinion"), &registry);
    for (example, _, directories) in APPLICATIONS {
        for (environment, directory) in ["dev", "prd"].into_iter().zip(directories) {
            let place = tempfile::tempdir().expect("a directory");
            let (asked, concrete) = (place.path().join("asked"), place.path().join("concrete"));
            copy(&root().join("examples"), &asked);
            copy(&root().join("examples"), &concrete);
            let application = root().join(format!("examples/{example}/application-{environment}.yaml")).display().to_string();
            let render = |checkout: &std::path::Path| {
                let directory = checkout.join(directory).display().to_string();
                driver.run(["generate".into(), directory, "--application".into(), application.clone()]).ok()
            };
            let found = render(&asked);

            let digest = found.split("sha256:").nth(1).map_or_else(String::new, |rest| format!("sha256:{}", &rest[..64]));
            let alias = if environment == "dev" { "2.1.0-rc.1" } else { "2.0.1" };
            write_tags(&concrete.join(example), &digest, alias);
            let directory = concrete.join(directory);
            let expected = match example {
                "latest-by-digest" => native("kustomize", &concrete, place.path(), &["build", &directory.display().to_string()]),
                "plain-manifests" => ["job-template", "web", "worker"]
                    .map(|name| std::fs::read_to_string(directory.join(format!("{name}.yaml"))).expect("a manifest"))
                    .join("---\n"),
                _ => {
                    let arguments = arguments(example, environment);
                    native("helm", &directory, place.path(), &arguments.iter().map(String::as_str).collect::<Vec<_>>())
                }
            };
            assert_same(&found, &expected);

            registry.forget_requests();
            assert_same(&render(&concrete), &expected);
            if example != "frontend-backend" && example != "plain-manifests" {
                assert_eq!(registry.requests().len(), 0, "{example}: nothing is left to ask");
            }
        }
    }
}

/// Replaces every placeholder: a whole value by a quoted tag, one behind an image by the bare tag.
fn write_tags(dir: &std::path::Path, digest: &str, alias: &str) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            write_tags(&path, digest, alias);
            continue;
        }
        let Ok(mut text) = std::fs::read_to_string(&path) else { continue };
        // The only rule's placeholder, and the two images that `~1` means.
        let tags = TAGS.into_iter().chain([("$(pin @web)", alias), ("$(pin ~1)", "1.4.0")]);
        for (placeholder, tag) in tags {
            let tag = tag.replace("DIGEST", digest);
            text = text.replace(&format!(": {placeholder}"), &format!(": \"{tag}\"")).replace(placeholder, &tag);
        }
        std::fs::write(&path, text).expect("written");
    }
}
