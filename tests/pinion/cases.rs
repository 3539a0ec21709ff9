//! Whole requests: every folder of `tests/cases` is run as Argo CD runs a plugin.
//!
//! A case is `input/` (the checkout), `tags.json` (what the registry holds), and what comes out: `expected.yaml`, or `expected.err` with
//! the text of the error. There may be `parameters.json` (what Argo CD puts into `ARGOCD_APP_PARAMETERS`; without it `null`), `path`
//! (the application's path in the checkout; without it `.`), `environment.json` (further variables: the operator's settings, or another
//! cluster) and `expected.log` (the warnings).
//!
//! The command is `plugin.yaml`'s own; working directory and environment are those of Argo CD's cmp-server. `PINION_BLESS=1` writes what
//! comes out into the expectations, to be read before it is committed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use base64::Engine as _;
use serde_json::Value;

use crate::fixtures::{copy, needs, snapshot};
use crate::support::argocd::{self, Serving};
use crate::support::driver::{Driver, Ran, root, tool};
use crate::support::examples;
use crate::support::registry::FakeRegistry;

/// Revision that every case is rendered at.
pub const REVISION: &str = "4f0c61b2a9d84e0f8a7a1f52c3b6d7e8f9012345";

/// What the cluster of every case offers.
pub const API_VERSIONS: [&str; 6] = ["apps/v1", "apps/v1/Deployment", "batch/v1", "batch/v1/CronJob", "v1", "v1/Secret"];

#[test]
fn every_case_gives_what_is_expected() {
    if !(needs("helm") && needs("kustomize")) {
        return;
    }
    if !needs("helm-worker") {
        eprintln!("both modes use `helm` then");
    }
    let only = std::env::var("PINION_CASE").unwrap_or_default();
    let mut cases: Vec<PathBuf> = std::fs::read_dir(root().join("tests/cases"))
        .expect("the folder is there")
        .map(|entry| entry.expect("an entry").path())
        .filter(|case| case.is_dir() && name(case).contains(&only))
        .collect();
    assert!(!cases.is_empty(), "no case has `{only}` in its name");
    cases.sort();
    let waiting = Mutex::new(cases.clone());
    let faults = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                loop {
                    let next = waiting.lock().expect("no thread panics").pop();
                    let Some(case) = next else { break };
                    if let Err(fault) = runtime.block_on(run(&case)) {
                        faults.lock().expect("no thread panics").insert(name(&case), fault);
                    }
                }
            });
        }
    });
    let faults = faults.into_inner().expect("no thread panics");
    let told: String = faults.iter().map(|(case, fault)| format!("\n=== {case}\n{fault}\n")).collect();
    assert!(faults.is_empty(), "{} of {} cases failed:\n{told}", faults.len(), cases.len());
    assert!(!only.is_empty() || cases.len() >= 80, "only {} cases", cases.len());
}

fn name(case: &Path) -> String {
    case.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Runs a case, and says what is not as expected.
async fn run(case: &Path) -> Result<(), String> {
    let registry = FakeRegistry::start().await;
    fill(&registry, &read(&case.join("tags.json")).unwrap_or_else(|| "{}".to_owned()));
    let place = tempfile::tempdir().expect("a directory");
    let checkout = place.path().join("checkout");
    copy(&case.join("input"), &checkout);
    let before = snapshot(&checkout);
    let path = read(&case.join("path")).map_or_else(|| ".".to_owned(), |path| path.trim().to_owned());
    let parameters = read(&case.join("parameters.json"));

    let driver = environment(Driver::new(env!("CARGO_BIN_EXE_pinion"), &registry), &path, parameters.as_deref());
    let more: BTreeMap<String, String> =
        read(&case.join("environment.json")).map_or_else(BTreeMap::new, |text| serde_json::from_str(&text).expect("JSON"));
    let driver = more.into_iter().fold(driver, |driver, (name, value)| driver.env(&name, value));
    let driver = driver.within(checkout.join(&path));
    let ran = driver.run(command());
    let (served, pins) = serve(&driver, &checkout, &path).await;

    let stable = |text: &str| stable(text, &checkout, &registry);
    let mut faults = Vec::new();
    if snapshot(&checkout) != before {
        faults.push("the checkout was changed".to_owned());
    }
    faults.extend(differs(&ran, &served));
    faults.extend(served.iter().flat_map(|manifests| untrue(manifests, &pins)));
    let outcome = outcome(&ran, &stable);
    for (file, text) in ["expected.yaml", "expected.err", "expected.log"].into_iter().zip(outcome) {
        let file = case.join(file);
        if std::env::var_os("PINION_BLESS").is_some() {
            match &text {
                Some(text) => std::fs::write(&file, text).expect("written"),
                None => drop(std::fs::remove_file(&file)),
            }
        } else if read(&file) != text {
            let expected = read(&file).unwrap_or_else(|| "(nothing)\n".to_owned());
            let found = text.unwrap_or_else(|| "(nothing)\n".to_owned());
            faults.push(format!("--- {} expected\n{expected}--- found\n{found}", name(&file)));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

/// The same request through the other door: `pinion serve`, with a store of its own, and with a warm Helm where there is one.
///
/// Returns the manifests, and the application's pins as the API tells them.
async fn serve(driver: &Driver, checkout: &Path, path: &str) -> (Result<String, tonic::Status>, Vec<Value>) {
    let store = driver.home().join("store-of-serve").display().to_string();
    // Messages tell the program's name.
    let helm = driver.home().join("helm");
    let worker = tool("helm-worker").or_else(|| tool("helm")).expect("the caller asked");
    std::os::unix::fs::symlink(worker, &helm).expect("linked");
    let serving =
        Serving::start(env!("CARGO_BIN_EXE_pinion"), driver, &["--store", &store, "--helm", &helm.display().to_string()]);
    let messages = argocd::messages(&argocd::archive(checkout), path, &argocd::environment(driver), 1024);
    let mut client = serving.client().await;
    let answer = client.generate_manifest(tokio_stream::iter(messages)).await;
    let told = serving.get("/api/v1/pins").await;
    let told: Value = serde_json::from_str(told.split_once("\r\n\r\n").expect("a body").1).expect("JSON");
    let pins = told[0]["pins"].as_array().cloned().unwrap_or_default();
    (answer.map(|answer| answer.into_inner().manifests.concat()), pins)
}

/// What Pinion says is what runs: every pin is in the manifests or is told to be unused, and every image that holds a pin's tag is one
/// that can be pulled. Told by the text alone, not by Pinion's own search.
fn untrue(manifests: &str, pins: &[Value]) -> Vec<String> {
    let mut faults = Vec::new();
    // What a comment says runs nowhere.
    let manifests: String = manifests.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    let manifests = manifests.as_str();
    // What Secrets hold is text, too.
    let words = manifests.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=')));
    let decoded = words.filter_map(|word| base64::engine::general_purpose::STANDARD.decode(word).ok());
    let decoded: Vec<String> = decoded.filter_map(|bytes| String::from_utf8(bytes).ok()).collect();
    let text = |pin: &Value, field: &str| pin[field].as_str().unwrap_or_default().to_owned();
    let line = regex::Regex::new(r#"\bimage: *["']?([^"',}\s]+)"#).expect("a constant");
    for pin in pins {
        let (image, tag, digest) = (text(pin, "image"), text(pin, "tag"), text(pin, "digest"));
        let holds = |text: &String| text.contains(&tag) || (!digest.is_empty() && text.contains(&digest));
        let is_there = std::iter::once(&manifests.to_owned()).chain(&decoded).any(holds);
        let runs = manifests.contains(&format!("{image}:{tag}")) && image.contains('/');
        match text(pin, "state").as_str() {
            "used" if is_there => {}
            "unused" if !runs => {}
            state => faults.push(format!("the pin `{image}:{tag}` is told to be `{state}`")),
        }
        let is_legal = |image: &str| image.parse::<pinion::image::Reference>().is_ok();
        let ends = |image: &str| image.ends_with(&format!(":{tag}")) || image.contains(&format!(":{tag}@"));
        let images = line.captures_iter(manifests).map(|found| found[1].to_owned());
        faults.extend(images.filter(|image| ends(image) && !is_legal(image)).map(|image| format!("`{image}` is no image")));
    }
    faults
}

/// Both doors give the same: the bytes of the manifests, or the failures.
fn differs(ran: &Ran, served: &Result<String, tonic::Status>) -> Option<String> {
    match served {
        Ok(manifests) if ran.status == 0 => {
            (*manifests != ran.stdout).then(|| format!("the socket gives other manifests:\n{manifests}"))
        }
        Err(status) if ran.status != 0 => {
            // Each door has a checkout of its own; all else is the same text.
            let path = regex::Regex::new(r"/[^\s'`]*/(checkout|request-[A-Za-z0-9]+|pinion-[A-Za-z0-9]+)\b").expect("a constant");
            let plain = |text: &str| path.replace_all(text, "PATH").replace("PATH/", "").trim().to_owned();
            let told = plain(status.message());
            let classic = plain(ran.clone().err().trim_start_matches("error: "));
            // A link that leads out is refused on arrival already.
            let is_same = told.ends_with(&classic) || told.contains("illegal filepath in symlink");
            (!is_same).then(|| format!("the socket says: {told}\n--- the per-render mode: {classic}"))
        }
        other => Some(format!("the socket answers otherwise: {other:?}")),
    }
}

/// What came out: manifests or error, and the warnings.
fn outcome(ran: &Ran, stable: &impl Fn(&str) -> String) -> [Option<String>; 3] {
    let lines = ran.stderr.lines().filter_map(|line| line.split_once("  WARN "));
    let warnings: String = lines.map(|(_, line)| stable(line) + "\n").collect();
    let warnings = Some(warnings).filter(|text| !text.is_empty());
    if ran.status == 0 {
        [Some(ran.stdout.clone()), None, warnings]
    } else {
        [None, Some(stable(&ran.clone().err()) + "\n"), warnings]
    }
}

/// `plugin.yaml`'s generate command, without its program.
fn command() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("plugin.yaml")).expect("the file is there");
    let plugin: Value = serde_yaml::from_str(&text).expect("YAML");
    let generate = &plugin["spec"]["generate"];
    let words = |key: &str| generate[key].as_array().cloned().unwrap_or_default();
    let words: Vec<Value> = words("command").into_iter().chain(words("args")).collect();
    let mut words = words.iter().map(|word| word.as_str().expect("text").to_owned());
    assert_eq!(words.next().as_deref(), Some("pinion"), "the program");
    words.collect()
}

/// All that Argo CD gives to a plugin.
pub fn environment(driver: Driver, path: &str, parameters: Option<&str>) -> Driver {
    let variables = [
        ("ARGOCD_APP_NAME", "web"),
        ("ARGOCD_APP_NAMESPACE", "prod"),
        ("ARGOCD_APP_PROJECT_NAME", "default"),
        ("ARGOCD_APP_REVISION", REVISION),
        ("ARGOCD_APP_REVISION_SHORT", &REVISION[..7]),
        ("ARGOCD_APP_REVISION_SHORT_8", &REVISION[..8]),
        ("ARGOCD_APP_SOURCE_REPO_URL", "https://git.example.com/acme/deployments.git"),
        ("ARGOCD_APP_SOURCE_PATH", path),
        ("ARGOCD_APP_SOURCE_TARGET_REVISION", "main"),
        ("KUBE_VERSION", "1.34.2"),
        ("KUBE_API_VERSIONS", &API_VERSIONS.join(",")),
    ];
    let driver = variables.into_iter().fold(driver, |driver, (name, value)| driver.env(name, value));
    let Some(parameters) = parameters else { return driver.env("ARGOCD_APP_PARAMETERS", "null") };
    let read: Value = serde_json::from_str(parameters).expect("parameters.json is JSON");
    let driver = flattened(&read).into_iter().fold(driver, |driver, (name, value)| driver.env(&name, value));
    driver.env("ARGOCD_APP_PARAMETERS", read.to_string())
}

/// `PARAM_…`, as Argo CD derives them (`ApplicationSourcePluginParameters.Environ`).
fn flattened(parameters: &Value) -> Vec<(String, String)> {
    let escape = |text: &str| -> String {
        let upper = text.to_uppercase();
        upper.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut variables = Vec::new();
    for parameter in parameters.as_array().into_iter().flatten() {
        let name = format!("PARAM_{}", escape(parameter["name"].as_str().unwrap_or_default()));
        if parameter["string"].is_string() {
            variables.push((name.clone(), text(&parameter["string"])));
        }
        for (index, value) in parameter["array"].as_array().into_iter().flatten().enumerate() {
            variables.push((format!("{name}_{index}"), text(value)));
        }
        for (key, value) in parameter["map"].as_object().into_iter().flatten() {
            variables.push((format!("{name}_{}", escape(key)), text(value)));
        }
    }
    variables
}

/// Fills a registry by a text as `examples/registry.json`.
pub fn fill(registry: &FakeRegistry, tags: &str) {
    examples::push(registry, &serde_json::from_str(tags).expect("tags.json is JSON"));
}

/// The text without what differs from run to run.
fn stable(text: &str, checkout: &Path, registry: &FakeRegistry) -> String {
    let canonical = std::fs::canonicalize(checkout).expect("it is there");
    let workspace = regex::Regex::new(r"[^\s'`=]*/pinion-[A-Za-z0-9]{6}\b").expect("a constant");
    let text = text.replace(&canonical.display().to_string(), "CHECKOUT").replace(&registry.host(), "REGISTRY");
    workspace.replace_all(&text, "WORKSPACE").into_owned()
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}
