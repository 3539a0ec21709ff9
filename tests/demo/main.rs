//! The demo: renders the examples against a registry in this process, pushes newer tags, and renders again.
//!
//! `cargo run --example demo` prints what happens. With `-- serve` the registry stays up, and the variables are printed with which
//! `pinion` asks it: for trying things by hand.

#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;

use support::argocd::{self, Serving};
use support::driver::{Driver, entries, root};
use support::examples::{self, APPLICATIONS, fill, push_later};
use support::registry::FakeRegistry;

#[tokio::main]
async fn main() {
    let registry = FakeRegistry::start().await;
    fill(&registry);
    if std::env::args().any(|word| word == "serve") {
        return serve(&registry).await;
    }
    let driver = Driver::new(program(), &registry).impatient();
    println!("A registry runs at {} and has the tags of examples/registry.json.", registry.url());
    let before = render_all(&driver, true);
    through_the_socket(&driver, &before).await;
    println!("\n== Newer tags are pushed ==\n");
    push_later(&registry);
    let after = render_all(&driver, false);
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        let changes: Vec<String> = before
            .lines()
            .zip(after.lines())
            .filter(|(before, after)| before != after)
            .map(|(before, after)| format!("  - {}\n  + {}", before.trim(), after.trim()))
            .collect();
        println!("{name}: {}", if changes.is_empty() { "unchanged".to_owned() } else { format!("\n{}", changes.join("\n")) });
    }
    println!("\n== The registry goes down ==\n");
    registry.stop();
    let during = render_all(&driver, false);
    let same = during.iter().zip(&after).filter(|(during, after)| during.1 == after.1).count();
    println!("{same} of {} applications render as before, from the last known good pins:", after.len());
    let run = driver.run(arguments("chat-api", "chat-api", "dev"));
    print!(
        "{}",
        run.stderr.lines().filter(|line| line.contains("stale since")).map(|line| format!("  {line}\n")).collect::<String>()
    );
}

/// The program that Cargo built beside this one.
fn program() -> PathBuf {
    let own = std::env::current_exe().expect("a path");
    own.parent().and_then(|examples| examples.parent()).expect("target/debug").join("pinion")
}

fn arguments(example: &str, directory: &str, environment: &str) -> [String; 5] {
    let path = |below: String| root().join("examples").join(below).display().to_string();
    [
        "generate".into(),
        path(directory.into()),
        "--application".into(),
        path(format!("{example}/application-{environment}.yaml")),
        "--explain".into(),
    ]
}

/// Asks `pinion serve` for the same, as Argo CD's repo-server does.
async fn through_the_socket(driver: &Driver, rendered: &[(String, String)]) {
    println!("\n== The same, asked of `pinion serve` on its plugin socket ==\n");
    let serving = Serving::start(&program().display().to_string(), driver, &[]);
    let archive = argocd::archive(&root().join("examples"));
    let mut client = serving.client().await;
    let mut rendered = rendered.iter();
    for (example, _, directories) in APPLICATIONS {
        for (environment, directory) in ["dev", "prd"].into_iter().zip(directories) {
            let messages = argocd::messages(&archive, directory, &examples::environment(example, environment), 1024);
            let started = std::time::Instant::now();
            let answer = client.generate_manifest(tokio_stream::iter(messages)).await.expect("manifests").into_inner();
            let (name, classic) = rendered.next().expect("rendered before");
            assert_eq!(&answer.manifests.concat(), classic, "{name}");
            println!("  {name}: the same {} bytes in {} ms", classic.len(), started.elapsed().as_millis());
        }
    }
}

fn render_all(driver: &Driver, show: bool) -> Vec<(String, String)> {
    let mut rendered = Vec::new();
    for (example, _, directories) in APPLICATIONS {
        for (environment, directory) in ["dev", "prd"].into_iter().zip(directories) {
            let name = format!("{example} {environment}");
            let run = driver.run(arguments(example, directory, environment));
            assert_eq!(run.status, 0, "{name}: {}", run.stderr);
            if show {
                println!("\n== {name} ==\n\n{}", table(&run.stderr));
                for line in run.stdout.lines().filter(|line| line.trim_start().trim_start_matches("- ").starts_with("image:")) {
                    println!("  {}", line.trim());
                }
            }
            rendered.push((name, run.stdout));
        }
    }
    rendered
}

/// The table of pins among the lines of the log.
fn table(stderr: &str) -> String {
    let from = stderr.lines().skip_while(|line| !line.starts_with("IMAGE "));
    from.take_while(|line| !line.contains(" INFO ")).map(|line| format!("  {line}\n")).collect()
}

async fn serve(registry: &FakeRegistry) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("registries.conf");
    std::fs::write(&file, entries(registry, "")).expect("written");
    println!("export PINION_REGISTRIES_CONF={}", file.display());
    println!("export PINION_STORE={}", dir.path().join("store").display());
    eprintln!("The registry runs at {}. Set these in another shell; Ctrl-C ends it.", registry.url());
    tokio::signal::ctrl_c().await.expect("a signal");
}
