//! The demo: renders the examples against a registry in this process, pushes newer tags, stops the registry, and says what happens.
//!
//! `make demo` builds and runs it. `make demo-registry` runs it with `serve`: the registry stays up for trying things by hand.

#[path = "../support/mod.rs"]
mod support;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use support::argocd::{self, Serving};
use support::driver::{Driver, Ran, entries, root};
use support::examples::{self, APPLICATIONS, fill, push_later};
use support::registry::FakeRegistry;
use table::{Table, WIDTH, short, wrap};

/// The environments of each example, with what its tables call them.
const ENVIRONMENTS: [(&str, &str); 2] = [("dev", "development"), ("prd", "production")];

/// Lines of an example: the file, and a part of the line.
type Lines = &'static [(&'static str, &'static str)];

/// Where each application says which tags are permitted.
const WRITTEN: [(&str, &str, Lines); 12] = [
    ("chat-api", "dev", &[("clusters/dev/chat-values.yaml", "$(pin")]),
    ("chat-api", "prd", &[("clusters/prd/chat-values.yaml", "$(pin")]),
    ("example-api", "dev", &[("values-dev.yaml", "$(pin")]),
    ("example-api", "prd", &[("values-prd.yaml", "$(pin")]),
    ("frontend-backend", "dev", &[(".pinion.yaml", "updateStrategy:"), (".pinion.yaml", "allowTags:")]),
    (
        "frontend-backend",
        "prd",
        &[
            (".pinion.yaml", "updateStrategy:"),
            (".pinion.yaml", "allowTags:"),
            ("application-prd.yaml", "name: pins"),
            ("application-prd.yaml", "backend: main-"),
        ],
    ),
    ("latest-by-digest", "dev", &[("overlays/dev/kustomization.yaml", "$(pin")]),
    ("latest-by-digest", "prd", &[("overlays/prd/kustomization.yaml", "$(pin")]),
    (
        "plain-manifests",
        "dev",
        &[("application-dev.yaml", "web="), ("manifests/web.yaml", "$(pin"), ("manifests/worker.yaml", "$(pin")],
    ),
    (
        "plain-manifests",
        "prd",
        &[("application-prd.yaml", "web="), ("manifests/web.yaml", "$(pin"), ("manifests/worker.yaml", "$(pin")],
    ),
    ("umbrella", "dev", &[("values-dev.yaml", "$(pin"), ("charts/worker/values.yaml", "$(pin")]),
    ("umbrella", "prd", &[("values.yaml", "$(pin"), ("charts/worker/values.yaml", "$(pin")]),
];

/// One application of an example, and what it rendered to.
struct Rendered {
    name: String,
    manifests: String,
    pins: Table,
}

#[tokio::main]
async fn main() {
    if std::env::args().any(|word| word == "serve") {
        return serve().await;
    }
    let registry = FakeRegistry::start().await;
    fill(&registry);
    let driver = Driver::new(program(), &registry).impatient();
    introduce();
    let before = first_renders(&driver);
    refusals(&driver);
    through_the_socket(&driver, &before).await;
    let after = newer_tags(&driver, &registry, &before);
    outage(&driver, &registry, &after);
    println!("\n== What to read next ==\n");
    println!("  README.md, \"Five minutes\": the same by hand, with `make demo-registry`");
    println!("  docs/examples.md: these six examples, explained");
    println!("  docs/placeholders.md, docs/policies.md: what can follow `$(pin`");
    println!("  README.md, \"Installing into Argo CD\"");
}

fn introduce() {
    println!(
        "
Six example applications are rendered for development and for production, by `pinion generate`, as
Argo CD would have it. The images' registry runs in this process. The demo
  1. shows which tags are permitted and which one is chosen, 2. shows two refusals,
  3. asks `pinion serve`, Argo CD's sidecar, for the same, 4. pushes newer tags,
  5. stops the registry.

The words of the tables:
  IMAGE   the image whose tag is chosen
  POLICY  the strategy and its constraint: `semver ~1.0` permits 1.0.x, and `~2-0` pre-releases, too
  PIN     the tag in the manifests, with its digest if the policy asks for it
  CHOSEN  how many of the registry's tags were looked at, and how many the policy permits
  STATE   fresh: the registry has just said so. given: the parameter `pins` holds this tag.
          stale: the registry does not answer, and the last known good pin is used"
    );
}

fn first_renders(driver: &Driver) -> Vec<Rendered> {
    println!("\n== 1. From a constraint to a tag ==");
    let rendered = render_all(driver);
    let mut applications = rendered.iter().zip(WRITTEN);
    for (example, _, _) in APPLICATIONS {
        for ((environment, title), (application, (of, at, lines))) in ENVIRONMENTS.into_iter().zip(applications.by_ref()) {
            assert_eq!((example, environment), (of, at), "the lists have the same order");
            println!("\nexamples/{example} in {title}");
            println!("\n  written");
            for (file, part) in lines {
                for line in lines_with(&root().join("examples").join(example).join(file), part) {
                    println!("    {file}: {line}");
                }
            }
            println!("  chosen");
            print!("{}", application.pins);
            println!("  rendered");
            let mut images: Vec<&str> = application.manifests.lines().filter_map(image).collect();
            images.dedup();
            for image in images {
                println!("    {}", short(image));
            }
        }
    }
    rendered
}

/// Two applications that must not render, each with a mistake that people make.
fn refusals(driver: &Driver) {
    println!("\n== 2. What is refused ==");
    let directory = driver.home().join("chart");
    fs::create_dir_all(&directory).expect("made");
    for (written, why) in [
        ("$(pin ~3)", "no tag of the registry is permitted"),
        ("$(Pin ~1.0)", "a typing error would otherwise reach the cluster as the image's tag"),
    ] {
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: chat\nspec:\n  containers:\n    - name: chat\n      image: \
             ghcr.io/justgithubaccount/chat-api:{written}\n"
        );
        fs::write(directory.join("pod.yaml"), manifest).expect("written");
        let run = driver.run(["generate", &directory.display().to_string()]);
        assert!(run.status != 0 && run.stdout.is_empty(), "{run:?}");
        println!("\n{why}\n\n  written\n    pod.yaml: image: ghcr.io/justgithubaccount/chat-api:{written}");
        println!("  `pinion generate` prints no manifest and exits with {}", run.status);
        let error = run.err().replace(&format!("{}/", directory.display()), "");
        for line in error.lines().flat_map(|line| wrap(line, WIDTH - 4)) {
            println!("    {line}");
        }
    }
}

/// Asks `pinion serve` for the same, as Argo CD's repo-server does.
async fn through_the_socket(driver: &Driver, rendered: &[Rendered]) {
    println!("\n== 3. The same from `pinion serve`, through the socket that Argo CD uses ==\n");
    let serving = Serving::start(&program().display().to_string(), driver, &[]);
    let archive = argocd::archive(&root().join("examples"));
    let mut client = serving.client().await;
    let mut rendered = rendered.iter();
    for (example, _, directories) in APPLICATIONS {
        for ((environment, _), directory) in ENVIRONMENTS.into_iter().zip(directories) {
            let messages = argocd::messages(&archive, directory, &examples::environment(example, environment), 1024);
            let started = std::time::Instant::now();
            let answer = client.generate_manifest(tokio_stream::iter(messages)).await.expect("manifests").into_inner();
            let Rendered { name, manifests, .. } = rendered.next().expect("rendered before");
            assert_eq!(&answer.manifests.concat(), manifests, "{name}");
            println!("  {name:<22}the same {:>4} bytes in {:>3} ms", manifests.len(), started.elapsed().as_millis());
        }
    }
}

fn newer_tags(driver: &Driver, registry: &FakeRegistry, before: &[Rendered]) -> Vec<Rendered> {
    println!("\n== 4. Newer tags are pushed, and everything is rendered again ==\n");
    push_later(registry);
    let after = render_all(driver);
    for (before, after) in before.iter().zip(&after) {
        let lines = before.manifests.lines().zip(after.manifests.lines());
        let mut changes: Vec<_> =
            lines.filter(|(before, after)| before != after).map(|(before, after)| (short(before), short(after))).collect();
        changes.dedup();
        println!("{}{}", before.name, if changes.is_empty() { ": unchanged" } else { "" });
        for (before, after) in changes {
            println!("  - {}\n  + {}", before.trim_start_matches(LIST), after.trim_start_matches(LIST));
        }
    }
    after
}

fn outage(driver: &Driver, registry: &FakeRegistry, after: &[Rendered]) {
    println!("\n== 5. The registry stops, and everything is rendered again ==\n");
    registry.stop();
    let during = render_all(driver);
    let same = during.iter().zip(after).filter(|(during, after)| during.manifests == after.manifests).count();
    assert_eq!(same, after.len());
    println!("All {same} applications render to the same manifests, from the last known good pins:\n");
    let row = |application: &str, pin: &str, state: &str| println!("  {application:<22}{pin:<42}{state}");
    row("APPLICATION", "PIN", "STATE");
    let mut reasons = Vec::new();
    for Rendered { name, pins, .. } in &during {
        for cells in pins.rows() {
            let (state, reason) = cells.last().expect("a state").split_once(": ").unwrap_or((cells.last().expect("a state"), ""));
            row(name, &format!("{}:{}", cells[0], cells[2]), state);
            reasons.push(reason.to_owned());
        }
    }
    reasons.retain(|reason| !reason.is_empty());
    reasons.sort();
    reasons.dedup();
    println!("\nPinion gives the reason with each row, and in its log:");
    for line in reasons.iter().flat_map(|reason| wrap(reason, WIDTH - 2)) {
        println!("  {line}");
    }
}

fn render_all(driver: &Driver) -> Vec<Rendered> {
    let mut rendered = Vec::new();
    for (example, _, directories) in APPLICATIONS {
        for ((environment, _), directory) in ENVIRONMENTS.into_iter().zip(directories) {
            let name = format!("{example} {environment}");
            let Ran { status, stdout, stderr } = driver.run(arguments(example, directory, environment));
            assert_eq!(status, 0, "{name}: {stderr}");
            rendered.push(Rendered { name, manifests: stdout, pins: Table::read(&stderr) });
        }
    }
    rendered
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

/// What stands before an item of a list.
const LIST: [char; 2] = [' ', '-'];

fn image(line: &str) -> Option<&str> {
    let field = line.trim_start_matches(LIST);
    field.starts_with("image:").then_some(field)
}

fn lines_with(file: &Path, part: &str) -> Vec<String> {
    let text = fs::read_to_string(file).expect("the file is there");
    let without_comment = |line: &str| line.split(" #").next().unwrap_or(line).trim().to_owned();
    let lines: Vec<String> = text.lines().filter(|line| line.contains(part)).map(without_comment).collect();
    assert!(!lines.is_empty(), "{} has no line with `{part}`", file.display());
    lines
}

/// The program that Cargo built beside this one.
fn program() -> PathBuf {
    let own = std::env::current_exe().expect("a path");
    own.parent().and_then(|examples| examples.parent()).expect("target/debug").join("pinion")
}

/// Runs the registry until Ctrl-C. Its registries.conf and the store stay, so that an outage can be tried.
async fn serve() {
    let directory = root().join("target/demo");
    fs::create_dir_all(&directory).expect("made");
    // On the port of the last time if that is free, so that pins remembered then are those of the same registry.
    let port_file = directory.join("port");
    let last = fs::read_to_string(&port_file).ok().and_then(|text| text.trim().parse().ok());
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let registry = FakeRegistry::start_on(last.filter(is_free).unwrap_or(0)).await;
    fill(&registry);
    fs::write(&port_file, registry.port().to_string()).expect("written");
    let configuration = directory.join("registries.conf");
    fs::write(&configuration, entries(&registry, "")).expect("written");
    let programs = program().parent().expect("target/debug").to_owned();
    let environment = format!(
        "export PATH=\"{}:{}:$PATH\"\nexport PINION_REGISTRIES_CONF=\"{}\"\nexport PINION_STORE=\"{}\"\n",
        programs.display(),
        root().join(".tools/bin").display(),
        configuration.display(),
        directory.join("store").display(),
    );
    fs::write(directory.join("env"), environment).expect("written");
    println!("A registry with the images of the examples runs at {}.", registry.url());
    println!("In a second shell, in this directory:  . target/demo/env");
    println!("Enter pushes newer tags. Ctrl-C stops the registry; its settings and Pinion's store stay in target/demo.");
    let pushed = registry.clone();
    // Detached: whoever still reads the terminal ends with the process.
    std::thread::spawn(move || {
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            push_later(&pushed);
            println!("Newer tags are pushed. Pinion asks again after a minute, or at once with PINION_TAGS_TTL=0s.");
        }
    });
    tokio::signal::ctrl_c().await.expect("a signal");
    println!("\nThe registry has stopped. Render again in the second shell: the last known good pins answer.");
}
