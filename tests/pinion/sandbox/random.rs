//! Random charts and kustomizations against the sandbox: no secret in what is told, no connection to the witness.
//!
//! `make fuzz-sandbox` runs this for `PINION_FUZZ_SECONDS`; a test run renders a few hundred. With `PINION_SANDBOX=off` the same charts do
//! get out, and the test demands that they do, so that its witnesses are known to see.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use super::escapes::{SECRET, Witnesses};
use super::level;
use crate::fixtures::needs;
use crate::support::argocd::{self, Serving};
use crate::support::driver::{Driver, tool};
use crate::support::random::Random;
use crate::support::registry::FakeRegistry;

/// Applications of a test run.
const FEW: usize = 300;

/// The program that is tested; another one shows what it has to be kept from.
fn program() -> String {
    std::env::var("PINION_TEST_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_pinion").to_owned())
}

/// An application: files by path in its directory, links, parameters.
#[derive(Default)]
struct Application {
    files: Vec<(String, Vec<u8>)>,
    links: Vec<(String, String)>,
    parameters: Vec<serde_json::Value>,
}

impl std::fmt::Display for Application {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (path, bytes) in &self.files {
            let text = String::from_utf8_lossy(bytes);
            let text = if bytes.starts_with(b"\x1f\x8b") { "(an archive)" } else { &text };
            write!(f, "--- {path}\n{text}\n")?;
        }
        write!(f, "--- {:?} {:?}", self.links, self.parameters)
    }
}

impl Application {
    fn write(&self, dir: &Path) {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir).expect("made");
        for (path, bytes) in &self.files {
            let path = dir.join(path);
            // Some names cannot stand beside each other.
            if fs::create_dir_all(path.parent().expect("a parent")).is_ok() {
                let _ = fs::write(path, bytes);
            }
        }
        for (path, target) in &self.links {
            let path = dir.join(path);
            if fs::create_dir_all(path.parent().expect("a parent")).is_ok() {
                let _ = std::os::unix::fs::symlink(target, path);
            }
        }
    }
}

/// Makes applications around what leads out.
struct Maker<'w> {
    random: Random,
    witnesses: &'w Witnesses,
}

impl Maker<'_> {
    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        self.random.of(choices)
    }

    fn once_in(&mut self, times: usize) -> bool {
        self.random.once_in(times)
    }

    /// Something outside: an address, or a path by scheme or without.
    fn place(&mut self) -> String {
        let host = self.of(&[
            "127.0.0.1",
            "127.0.0.1",
            "localhost",
            "LOCALHOST",
            "127.1",
            "0x7f.1",
            "2130706433",
            "[::ffff:127.0.0.1]",
            "0.0.0.0",
            "0",
        ]);
        let kind = self.of(&["http://", "http://", "HTTP://", "oci://", "git::http://", "ssh://", "git://", "http://u:p@"]);
        let address = format!("{kind}{host}:PORT");
        let end = self.of(&["", "/", "/schema.json", "/r.git", "/r.git//d?ref=main", "/a.yaml", "/charts"]);
        let file = self.of(&["chart", "schema.json", "values.yaml", "secret", "base", "foreign-0.1.0.tgz", ""]);
        let upwards = "../".repeat(1 + self.random.below(6));
        let text = match self.random.below(8) {
            0..=2 => format!("{address}{end}"),
            3 => format!("file://OUTSIDE/{file}"),
            4 => format!(
                "{}OUTSIDE/{file}",
                self.of(&["file://", "FILE://", "File:", "file:///", "file://localhost", "git::file://"])
            ),
            5 => format!("OUTSIDE/{file}"),
            6 => format!("{upwards}outside/{file}"),
            _ => format!("file://{upwards}outside/{file}"),
        };
        self.witnesses.filled(&text)
    }

    /// A key as some reader may take it all the same.
    fn key(&mut self, key: &str) -> String {
        match self.random.below(8) {
            0 => key.to_uppercase(),
            1 => key[..1].to_uppercase() + &key[1..],
            2 => key.replace('s', "ſ").replace('k', "\u{212a}"),
            3 => format!("\"{}\\x{:02x}\"", &key[..key.len() - 1], key.as_bytes()[key.len() - 1]),
            4 => format!("!!str {key}"),
            5 => format!("'{key}'"),
            6 => format!("? {key}\n"),
            _ => key.to_owned(),
        }
    }

    /// One entry of a mapping in flow style, perhaps twice, merged or by an alias.
    fn entry(&mut self, key: &str, value: &str) -> String {
        let own = self.key(key).replace('\n', " ").trim_start_matches("? ").to_owned();
        match self.random.below(6) {
            0 => format!("<<: {{{own}: '{value}'}}"),
            1 => format!("<<: [{{x: y}}, {{{own}: '{value}'}}]"),
            2 => format!("{key}: harmless, {own}: '{value}'"),
            3 => format!("{own}: '{value}', {key}: harmless"),
            4 => format!("{own}: &a{} '{value}'", self.random.below(9)),
            _ => format!("{own}: '{value}'"),
        }
    }

    /// Bytes that are not quite what they were.
    fn noise(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        if bytes.is_empty() || !self.once_in(8) {
            return bytes;
        }
        let at = self.random.below(bytes.len());
        match self.random.below(5) {
            0 => bytes.insert(at, 0xff),
            1 => bytes[at] ^= 1 << self.random.below(8),
            2 => bytes.truncate(at),
            3 => bytes.splice(0..0, *b"\xef\xbb\xbf").for_each(drop),
            _ => bytes.extend_from_within(at..),
        }
        bytes
    }

    /// A schema that refers elsewhere.
    fn schema(&mut self) -> Vec<u8> {
        let (key, place) = (self.of(&["$ref", "$ref", "$ref", "$schema", "$dynamicRef", "$id", "\\u0024ref"]), self.place());
        let reference = format!("{{\"{key}\": \"{place}\"}}");
        let text = match self.random.below(8) {
            0 => format!("{{\"properties\": {{\"a\": {reference}}}}}"),
            1 => format!("{{\"allOf\": [{reference}]}}"),
            2 => format!("{{\"x\": {reference}, \"$ref\": \"#/x\"}}"),
            3 => format!("{{\"$id\": \"{place}\", \"allOf\": [{{\"$ref\": \"b.json\"}}]}}"),
            4 => format!("{{\"$ref\": \"#\", {}", &reference[1..]),
            5 => format!(
                "{{\"$schema\": \"http://json-schema.org/draft-0{}/schema#\", {}",
                4 + self.random.below(4),
                &reference[1..]
            ),
            6 => format!("{{\"x\": \"\u{ff}\", {}", &reference[1..]),
            _ => reference,
        };
        let mut bytes = text.into_bytes();
        if self.once_in(4) {
            // Within a text, where a reader by bytes does not mind.
            let end = bytes.iter().rposition(|byte| *byte == b'}').unwrap_or(0);
            bytes.splice(end..end, *b", \"y\": \"\xff\xfe\"").for_each(drop);
        }
        self.noise(bytes)
    }

    /// `Chart.yaml`, and what declares its dependencies.
    fn chart_files(&mut self, name: &str) -> Vec<(String, Vec<u8>)> {
        let is_old = self.once_in(4);
        let mut declared = String::new();
        for _ in 0..self.random.below(7).saturating_sub(4) {
            let (mut place, mut dependency) =
                (self.place(), self.of(&["foreign", "chart", "lib", "../../outside/chart"]).to_owned());
            let mut version = self.of(&["0.1.0", "*", "^0.1", ">=0-0", ""]).to_owned();
            if self.once_in(2) {
                (place, dependency, version) = (self.witnesses.filled("file://OUTSIDE/chart"), "foreign".into(), "0.1.0".into());
            }
            let entries = [self.entry("name", &dependency), self.entry("version", &version), self.entry("repository", &place)];
            declared += &format!("- {{{}}}\n", entries.join(", "));
        }
        let version = if is_old { "v1" } else { "v2" };
        let mut chart = format!("apiVersion: {version}\nname: {name}\nversion: 0.1.0\n");
        let mut files = Vec::new();
        if !declared.is_empty() && self.once_in(2) {
            // One that is there, so that there is something to build.
            declared += "- {name: own, version: 0.1.0, repository: 'file://own'}\n";
            files.push(("own/Chart.yaml".to_owned(), b"apiVersion: v2\nname: own\nversion: 0.1.0\n".to_vec()));
        }
        if !declared.is_empty() {
            let list = format!("{}:\n{declared}", self.key("dependencies").trim_start_matches("? ").trim_end());
            if is_old {
                files.push(("requirements.yaml".to_owned(), self.noise(list.into_bytes())));
            } else {
                chart += &list;
            }
            if self.once_in(4) {
                let lock = format!("dependencies:\n{declared}digest: sha256:{}\n", "0".repeat(64));
                files.push((self.of(&["Chart.lock", "requirements.lock"]).to_owned(), lock.into_bytes()));
            }
        }
        let chart = if self.once_in(8) { self.noise(chart.into_bytes()) } else { chart.into_bytes() };
        files.push(("Chart.yaml".to_owned(), chart));
        if self.once_in(4) {
            let name = self.of(&[
                "values.schema.json",
                "values.schema.json",
                "values.schema.json",
                "VALUES.SCHEMA.JSON",
                "templates/values.schema.json",
            ]);
            files.push((name.to_owned(), self.schema()));
        }
        if self.once_in(3) {
            files.push((
                "values.yaml".to_owned(),
                self.noise(b"image: {repository: ghcr.io/acme/web, tag: $(pin ~1)}\n".to_vec()),
            ));
        }
        let place = self.place();
        let template = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata:\n  a: '{{{{ .Files.Get \"{place}\" }}}}{{{{ .Files.Glob \"{place}*\" | len }}}}{{{{ .Values | toJson }}}}'\n"
        );
        files.push(("templates/a.yaml".to_owned(), template.into_bytes()));
        files
    }

    /// An archive of a chart, perhaps an odd one.
    fn archive(&mut self, depth: usize) -> Vec<u8> {
        let mut files = self.chart_files("foreign");
        if depth > 0 && self.once_in(2) {
            files.push(("charts/foreign-0.1.0.tgz".to_owned(), self.archive(depth - 1)));
        }
        let top = self.of(&["foreign", "foreign", "foreign", "templates", "charts", ".", "./foreign", "a/b"]).to_owned();
        let second = if self.once_in(4) { self.of(&["other", "templates", "charts"]).to_owned() } else { top.clone() };
        if self.once_in(3) {
            files.reverse();
        }
        let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (path, bytes) in &files {
            let top = if self.once_in(3) { &second } else { &top };
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            let _ = builder.append_data(&mut header, format!("{top}/{path}"), bytes.as_slice());
        }
        if self.once_in(4) {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(if self.once_in(2) { tar::EntryType::Symlink } else { tar::EntryType::Link });
            header.set_size(0);
            let name = self.of(&["values.schema.json", "templates/b.yaml", "values.yaml", "Chart.yaml"]);
            let _ = builder.append_link(&mut header, format!("{top}/{name}"), self.witnesses.filled("OUTSIDE/schema.json"));
        }
        let mut bytes = builder.into_inner().and_then(GzEncoder::finish).expect("packed");
        if depth > 0 && self.once_in(8) {
            bytes.extend(self.archive(0));
        }
        if self.once_in(20) { self.noise(bytes) } else { bytes }
    }

    fn chart(&mut self) -> Application {
        let mut application = Application { files: self.chart_files("web"), ..Application::default() };
        for _ in 0..self.random.below(3) {
            let name = self.of(&["foreign-0.1.0.tgz", "x.tgz", "foreign.tar.gz", "_x.tgz", ".x.tgz", "chart-1.TGZ"]);
            application.files.push((format!("charts/{name}"), self.archive(2)));
        }
        if self.once_in(3) {
            let below = "charts/foreign/".repeat(1 + self.random.below(12));
            for (path, bytes) in self.chart_files("foreign") {
                application.files.push((format!("{below}{path}"), bytes));
            }
        }
        if self.once_in(12) {
            let path = self
                .of(&["charts/x", "charts/x.tgz", "values.yaml", "templates/b.yaml", "values.schema.json", "Chart.lock"])
                .to_owned();
            application
                .links
                .push((path, self.witnesses.filled(self.random.of(&["OUTSIDE/chart", "OUTSIDE/schema.json", "OUTSIDE/secret"]))));
        }
        if self.once_in(10) {
            let name = self.of(&["helm-release-name", "helm-namespace", "helm-kube-version"]);
            let text = self.of(&["{{env \"WITNESS\"}}", "{{ expandenv `$WITNESS` }}", "$WITNESS", "a{{env \"WITNESS\"}}"]);
            application.parameters.push(json!({"name": name, "string": text}));
        }
        if self.once_in(12) {
            let place = self.place();
            application.parameters.push(json!({"name": "helm-value-files", "array": [place]}));
        }
        if self.once_in(12) {
            let (place, key) = (self.place(), self.of(&["a", "a.b", "a,b", "a=x,b"]));
            application.parameters.push(json!({"name": "helm-file-parameters", "map": {key: place}}));
        }
        application
    }

    /// A chart that differs from an honest one in its list of dependencies alone: one is missing, one is there and named once more.
    fn dependencies(&mut self) -> Application {
        let place = self.witnesses.filled("file://OUTSIDE/chart");
        let foreign =
            [self.entry("name", "foreign"), self.entry("version", "0.1.0"), self.entry("repository", &place)].join(", ");
        let own = "name: own, version: 0.1.0, repository: 'file://own'";
        let list = self.key("dependencies").trim_start_matches("? ").trim_end().to_owned();
        let declared = match self.random.below(3) {
            0 => format!("dependencies: [{{{own}}}]\n{list}: [{{{foreign}}}, {{{own}}}]\n"),
            1 => format!("x: &x {{{foreign}}}\n{list}: [{{{own}}}, *x]\n"),
            _ => format!("{list}: [{{{own}}}, {{{foreign}}}]\n"),
        };
        let chart = |name: &str| format!("apiVersion: v2\nname: {name}\nversion: 0.1.0\n");
        let mut files = vec![
            ("Chart.yaml".to_owned(), chart("web") + &declared),
            ("own/Chart.yaml".to_owned(), chart("own")),
            ("templates/a.yaml".to_owned(), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n".to_owned()),
        ];
        if self.once_in(2) {
            files.push(("charts/foreign/Chart.yaml".to_owned(), chart("foreign")));
        }
        let files = files.into_iter().map(|(path, text)| (path, text.into_bytes())).collect();
        Application { files, ..Application::default() }
    }

    fn kustomization(&mut self) -> Application {
        let mut lines = String::new();
        for _ in 0..=self.random.below(3) {
            let place = self.place();
            let field = self.of(&[
                "resources",
                "bases",
                "components",
                "generators",
                "transformers",
                "crds",
                "patchesStrategicMerge",
                "validators",
            ]);
            let line = match self.random.below(9) {
                0..=2 => format!("{}: ['{place}']\n", self.key(field).trim_start_matches("? ").trim_end()),
                3 => format!(
                    "configMapGenerator: [{{name: a, {}: ['x={place}']}}]\n",
                    self.key("files").trim_start_matches("? ").trim_end()
                ),
                4 => format!("secretGenerator: [{{name: b, envs: ['{place}']}}]\n"),
                5 => format!("openapi: {{path: '{place}'}}\n"),
                6 => format!("patches: [{{path: '{place}'}}]\n"),
                7 => format!("helmCharts: [{{name: foreign, version: 0.1.0, {}}}]\n", self.entry("repo", &place)),
                _ => format!(
                    "generators:\n- |\n  {{apiVersion: builtin, kind: ConfigMapGenerator, metadata: {{name: c}}, files: ['{place}']}}\n"
                ),
            };
            lines += &line;
        }
        lines += self.of(&["", "resources: [pod.yaml]\n", "helmGlobals: {chartHome: OUTSIDE}\n"]);
        let text = self.witnesses.filled(&lines).into_bytes();
        let name = self.of(&["kustomization.yaml", "kustomization.yml", "Kustomization"]).to_owned();
        let mut application = Application::default();
        application.files.push((name, if self.once_in(6) { self.noise(text) } else { text }));
        application.files.push(("pod.yaml".to_owned(), b"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n".to_vec()));
        if self.once_in(5) {
            application.links.push(("base".to_owned(), self.witnesses.filled("OUTSIDE/base")));
        }
        if self.once_in(4) {
            let place = self.place();
            let name = self.of(&["kustomize-components", "kustomize-images"]);
            application.parameters.push(json!({"name": name, "array": [place]}));
        }
        if self.once_in(5) {
            let place = self.place();
            application.parameters.push(json!({"name": "kustomize-patches", "string": format!("[{{path: '{place}'}}]")}));
        }
        application
    }
}

/// What got out.
#[derive(Debug, Default)]
struct Found {
    rendered: usize,
    succeeded: usize,
    secrets: Vec<u64>,
    connections: Vec<u64>,
}

/// Renders random applications by both modes until the time is up, or so many.
async fn run(witnesses: &Witnesses, first: u64, is_enough: impl Fn(&Found) -> bool) -> Found {
    let registry = FakeRegistry::start().await;
    registry.tags("acme/web", ["1.0.0", "1.1.0"]);
    let place = tempfile::tempdir_in(witnesses.path()).expect("a directory");
    let app = place.path().join("checkout/app");
    let sandbox = std::env::var("PINION_SANDBOX").unwrap_or_else(|_| "best-effort".to_owned());
    let driver = |options: &str| {
        Driver::new(program(), &registry)
            .env("PINION_SANDBOX", sandbox.as_str())
            .env("WITNESS", SECRET)
            .env("PINION_RENDER_TIMEOUT", "20s")
            .env("PINION_VALUE_FILE_SCHEMES", "http,https")
            .env("PINION_KUSTOMIZE_BUILD_OPTIONS", options)
    };
    let helm: PathBuf = tool("helm-worker").or_else(|| tool("helm")).expect("the caller asked");
    let start = |options: &str| Serving::start(&program(), &driver(options), &["--helm", &helm.display().to_string()]);
    let unrestricted = "--load-restrictor LoadRestrictionsNone --enable-helm";
    let servers = [(start(""), ""), (start(unrestricted), unrestricted)];
    let (mut found, mut logged) = (Found::default(), BTreeMap::new());
    for seed in first.. {
        if is_enough(&found) {
            break;
        }
        let mut maker = Maker { random: Random::new(seed), witnesses };
        let application = match maker.random.below(6) {
            0 | 1 => maker.kustomization(),
            2 => maker.dependencies(),
            _ => maker.chart(),
        };
        application.write(&app);
        let parameters = serde_json::to_string(&application.parameters).expect("JSON");
        let variables =
            [("ARGOCD_APP_NAME", "web"), ("ARGOCD_APP_SOURCE_PATH", "app"), ("ARGOCD_APP_PARAMETERS", parameters.as_str())];
        let environment: Vec<(String, String)> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (serving, options) = &servers[maker.random.below(2)];
        let before = witnesses.connections();
        let archive = argocd::archive(&place.path().join("checkout"));
        let messages = argocd::messages(&archive, "app", &environment, 1 << 16);
        let answer = serving.client().await.generate_manifest(tokio_stream::iter(messages)).await;
        let mut told = format!("{answer:?}");
        found.rendered += 1;
        found.succeeded += usize::from(answer.is_ok());
        if maker.once_in(8) {
            let driver = variables.iter().fold(driver(options).within(&app), |driver, (name, value)| driver.env(name, *value));
            for command in ["generate", "check"] {
                let ran = tokio::task::block_in_place(|| driver.run([command]));
                told += &format!("{}{}", ran.stdout, ran.stderr);
            }
        }
        // What the server logged since.
        let log = serving.log();
        let read = logged.insert(*options, log.len()).unwrap_or(0);
        told += &log[read..];
        if told.contains(SECRET) {
            println!("seed {seed}: the secret was told: {application}\n{told}");
            found.secrets.push(seed);
        }
        if witnesses.connections() > before {
            println!("seed {seed}: a connection was made: {application}\n{told}");
            found.connections.push(seed);
        }
        if found.rendered % 1000 == 0 {
            eprintln!("{} applications, {} of them rendered", found.rendered, found.succeeded);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn random_charts_and_kustomizations_do_not_lead_out() {
    let level = level();
    if !needs("helm") || !needs("kustomize") || level.landlock < 4 || !level.seccomp {
        return;
    }
    let witnesses = Witnesses::start();
    let time = std::env::var("PINION_FUZZ_SECONDS").ok().map(|text| Duration::from_secs(text.parse().expect("seconds")));
    let started = Instant::now();
    // Another seed each time, where there is time for more than a few.
    let first = match time {
        Some(_) => std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("later").as_secs() << 20,
        None => 0,
    };
    let is_off = std::env::var("PINION_SANDBOX").is_ok_and(|mode| mode == "off");
    let found = run(&witnesses, first, |found| match time {
        Some(_) if is_off && !found.secrets.is_empty() && !found.connections.is_empty() => true,
        Some(time) => started.elapsed() > time,
        None => found.rendered >= FEW,
    })
    .await;
    println!("{} applications, {} of them rendered, {:?}", found.rendered, found.succeeded, started.elapsed());
    assert!(found.succeeded > found.rendered / 50, "too few are rendered to tell: {found:?}");
    if is_off {
        assert!(!found.secrets.is_empty() && !found.connections.is_empty(), "without a sandbox something gets out: {found:?}");
    } else {
        assert!(found.secrets.is_empty() && found.connections.is_empty(), "{found:?}");
    }
}
