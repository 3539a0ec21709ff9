//! Charts to compare two ways of rendering with: the repository's own, generated ones, and those that are likely to leave a trace.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::fixtures::write;
use crate::support::driver::root;
use crate::support::random::Random;

/// A `helm template`.
#[derive(Clone, Debug)]
pub struct Chart {
    pub name: String,
    pub directory: PathBuf,
    pub arguments: Vec<String>,
    /// Beside what every child gets.
    pub environment: Vec<(&'static str, &'static str)>,
}

impl Chart {
    fn new(name: impl Into<String>, directory: impl Into<PathBuf>, more: &[&str]) -> Self {
        let arguments = ["template", "."].iter().chain(more).map(|&word| word.to_owned()).collect();
        Self { name: name.into(), directory: directory.into(), arguments, environment: Vec::new() }
    }

    fn within(self, variable: (&'static str, &'static str)) -> Self {
        Self { environment: vec![variable], ..self }
    }
}

/// What Argo CD adds to most renders.
const USUAL: [&str; 11] = [
    "--name-template",
    "web",
    "--namespace",
    "prod",
    "--kube-version",
    "1.34.2",
    "--api-versions",
    "apps/v1",
    "--api-versions",
    "batch/v1/CronJob",
    "--include-crds",
];

/// Every chart of the cases and the examples, with and without each YAML file beside it as values.
pub fn of_the_repository() -> Vec<Chart> {
    let mut charts = Vec::new();
    let mut waiting = vec![root().join("tests/cases"), root().join("examples")];
    while let Some(dir) = waiting.pop() {
        let entries = std::fs::read_dir(&dir).expect("a directory").map(|entry| entry.expect("an entry").path());
        let mut entries: Vec<PathBuf> = entries.collect();
        entries.sort();
        let name = dir.strip_prefix(root()).expect("below the root").display().to_string();
        if dir.join("Chart.yaml").is_file() {
            charts.push(Chart::new(format!("{name}, usual"), &dir, &USUAL));
            charts.push(Chart::new(format!("{name}, plain"), &dir, &["--skip-tests"]));
            let is_values = |path: &&PathBuf| path.is_file() && path.extension().is_some_and(|end| end == "yaml");
            for values in entries.iter().filter(is_values) {
                let values = values.display().to_string();
                charts.push(Chart::new(format!("{name}, {values}"), &dir, &[&USUAL[..], &["--values", &values]].concat()));
            }
        }
        waiting.extend(entries.into_iter().filter(|path| path.is_dir() && !path.is_symlink()));
    }
    charts
}

/// Lines of templates; some of them fail.
const LINES: [&str; 24] = [
    "  name: {{ include \"web.name\" . }}\n",
    "  namespace: {{ .Release.Namespace }}\n",
    "  labels: {{- .Values.labels | toYaml | nindent 4 }}\n",
    "  kube: {{ .Capabilities.KubeVersion.Version | quote }}\n",
    "  has: {{ .Capabilities.APIVersions.Has \"apps/v1\" }}\n",
    "  helm: {{ .Capabilities.HelmVersion.Version }}\n",
    "  sum: {{ .Values.text | sha256sum | trunc 12 }}\n",
    "  list: {{ range $index, $item := .Values.list }}{{ $index }}{{ $item }},{{ end }}\n",
    "  tpl: {{ tpl .Values.template . | quote }}\n",
    "  file: {{ .Files.Get \"files/a.txt\" | b64enc }}\n",
    "  files: {{ (.Files.Glob \"files/*\").AsConfig | nindent 4 }}\n",
    "  found: {{ lookup \"v1\" \"Pod\" \"a\" \"b\" | toJson }}\n",
    "  dict: {{ dict \"a\" 1 \"b\" (list 1 2.5 true nil) | toJson }}\n",
    "  merged: {{ merge (dict \"x\" 1) .Values.labels | toJson | quote }}\n",
    "  number: {{ add .Values.number 3 | mul 7 }} # {{ .Values.number }}\n",
    "  semver: {{ semverCompare \">=1.30-0\" .Capabilities.KubeVersion.Version }}\n",
    "  upgrade: {{ .Release.IsUpgrade }} {{ .Release.Service }} {{ .Release.Revision }}\n",
    "  {{- $_ := set .Values \"text\" (printf \"%s!\" .Values.text) }}\n  text: {{ .Values.text | quote }}\n",
    "  host: {{ getHostByName \"localhost\" | quote }}\n",
    "  nothing: {{ .Values.nothing.at.all }}\n",
    "  wanted: {{ required \"number is needed\" .Values.missing }}\n",
    "  panics: {{ regexReplaceAll \"(\" .Values.text \"x\" }}\n",
    "  not: [yaml\n",
    "  stop: {{ fail .Values.text }}\n",
];

/// Charts of all sorts below a directory; about a third of them fail.
pub fn generated(place: &Path, count: usize) -> Vec<Chart> {
    (0..count)
        .map(|number| {
            let mut random = Random::new(number as u64);
            let name = format!("chart-{number:03}");
            let directory = place.join(&name);
            let is_failing = random.once_in(3);
            write_chart(&mut random, &directory, "web", is_failing, 0);
            let mut more: Vec<String> = Vec::new();
            let mut maybe = |random: &mut Random, words: &[&str]| {
                if random.once_in(2) {
                    more.extend(words.iter().map(|&word| word.to_owned()));
                }
            };
            maybe(&mut random, &["--name-template", "web"]);
            let namespace = random.of(&["prod", "dev", "kube-system"]);
            maybe(&mut random, &["--namespace", namespace]);
            let version = random.of(&["1.34.2", "1.29.0", "1.34"]);
            maybe(&mut random, &["--kube-version", version]);
            maybe(&mut random, &["--api-versions", "apps/v1", "--api-versions", "acme.dev/v1/Web"]);
            maybe(&mut random, &["--include-crds"]);
            maybe(&mut random, &["--skip-tests"]);
            maybe(&mut random, &["--skip-schema-validation"]);
            maybe(&mut random, &["--set", "number=41,labels.tier=back", "--set-string", "text=1234"]);
            maybe(&mut random, &["--set-file", "labels.file=files/a.txt"]);
            maybe(&mut random, &["--values", "other.yaml"]);
            let more: Vec<&str> = more.iter().map(String::as_str).collect();
            Chart::new(name, directory, &more)
        })
        .collect()
}

fn write_chart(random: &mut Random, directory: &Path, name: &str, is_failing: bool, depth: usize) {
    let mut chart = format!("apiVersion: v2\nname: {name}\nversion: 0.{}.0\nappVersion: \"1.{}\"\n", depth, random.below(9));
    chart += random.of(&["", "", "", "type: application\n", "deprecated: true\n", "kubeVersion: \">=1.30-0\"\n"]);
    if is_failing {
        chart +=
            random.of(&["", "", "", "type: library\n", "kubeVersion: \">=1.99\"\n", "dependencies: [{name: a, version: 1}]\n"]);
    }
    let mut files = Vec::new();
    if depth < 2 && random.once_in(3) && !chart.contains("dependencies") {
        let condition = random.of(&["", ", condition: sub.enabled", ", alias: other"]);
        let _ = writeln!(chart, "dependencies:\n  - {{name: sub, version: 0.{}.0, repository: ''{condition}}}", depth + 1);
        let is_failing = is_failing && random.once_in(2);
        write_chart(random, &directory.join("charts/sub"), "sub", is_failing, depth + 1);
    }
    files.push(("Chart.yaml".to_owned(), chart));
    let values = "text: some text\nnumber: 7\nlist: [a, b, 3]\nlabels: {app: web, tier: front}\ntemplate: '{{ .Release.Name }}-{{ .Chart.Name }}'\nsub: {enabled: false}\n";
    files.push(("values.yaml".to_owned(), values.to_owned()));
    files.push(("other.yaml".to_owned(), "number: 8\nlabels: {app: other}\nlist: null\n".to_owned()));
    files.push(("files/a.txt".to_owned(), format!("a file {}\n", random.below(100))));
    let helpers = format!("{{{{- define \"web.name\" }}}}{{{{ .Release.Name }}}}-{}{{{{ end }}}}\n", random.below(100));
    files.push(("templates/_helpers.tpl".to_owned(), helpers));
    for number in 0..1 + random.below(4) {
        let kind = random.of(&["ConfigMap", "Service", "Deployment", "Web", "Namespace"]);
        let mut text = format!("apiVersion: v1\nkind: {kind}\nmetadata:\n  name: web-{number}\n");
        if random.once_in(4) {
            text += "  annotations:\n    helm.sh/hook: ";
            text += random.of(&["test\n", "pre-install,post-upgrade\n", "nonsense\n"]);
        }
        text += "spec:\n";
        for _ in 0..random.below(6) {
            text += LINES[random.below(if is_failing { LINES.len() } else { 19 })];
        }
        if random.once_in(12) {
            text += "  large: {{ range until 20000 }}{{ printf \"%05d\" . }} {{ end }}\n";
        }
        files.push((format!("templates/{number}.yaml"), text));
    }
    if random.once_in(4) {
        let wrong = if is_failing { "string" } else { "integer" };
        files.push(("values.schema.json".to_owned(), format!("{{\"properties\": {{\"number\": {{\"type\": \"{wrong}\"}}}}}}")));
    }
    if random.once_in(4) {
        let crd = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: webs.acme.dev}\n";
        files.push(("crds/web.yaml".to_owned(), crd.to_owned()));
    }
    if random.once_in(4) {
        files.push(("templates/NOTES.txt".to_owned(), "Thank you for {{ .Chart.Name }}\n".to_owned()));
    }
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    write(directory, &files);
}

/// Renders that would show, or leave, a trace in whatever lives on: settings of all kinds, and everything that ends badly.
pub fn suspects(place: &Path) -> Vec<Chart> {
    let make = |name: &str, files: &[(&str, &str)]| {
        let directory = place.join(name);
        let has_chart = files.iter().any(|(path, _)| *path == "Chart.yaml");
        if !has_chart {
            write(&directory, &[("Chart.yaml", "apiVersion: v2\nname: web\nversion: 0.1.0\n")]);
        }
        write(&directory, files);
        directory
    };
    let all = "release: {{ .Release | toJson }}\nkube: {{ .Capabilities.KubeVersion | toJson }}\napi: {{ .Capabilities.APIVersions | toJson | sha256sum }}\nhas: {{ .Capabilities.APIVersions.Has \"acme.dev/v1\" }}\nvalues: {{ .Values | toJson }}\nname: {{ include \"name\" . }}\n";
    let changes =
        "{{- $_ := set .Values \"mode\" \"changed\" }}{{ $_ := set .Values.deep \"a\" \"changed\" }}a: {{ .Values | toJson }}\n";
    let probe = make(
        "probe",
        &[
            ("values.yaml", "mode: none\ndeep: {a: 1}\n"),
            ("templates/_helpers.tpl", "{{ define \"name\" }}probe{{ end }}\n"),
            ("templates/a.yaml", all),
            ("templates/test.yaml", "kind: Pod\nmetadata: {name: t, annotations: {helm.sh/hook: test}}\n"),
            ("crds/a.yaml", "kind: CustomResourceDefinition\nmetadata: {name: a}\n"),
            ("values.schema.json", "{\"properties\": {\"mode\": {\"type\": \"string\"}}}"),
            ("more.yaml", "mode: more\ndeep: {b: 2}\n"),
        ],
    );
    let changing = make("changing", &[("values.yaml", "mode: none\ndeep: {a: 1}\n"), ("templates/a.yaml", changes)]);
    let other = make(
        "other",
        &[
            ("Chart.yaml", "apiVersion: v2\nname: other\nversion: 0.2.0\ndeprecated: true\n"),
            ("templates/_helpers.tpl", "{{ define \"name\" }}other{{ end }}\n"),
            ("templates/a.yaml", all),
        ],
    );
    let urn = make(
        "urn",
        &[("values.schema.json", "{\"properties\": {\"mode\": {\"$ref\": \"urn:acme:mode\"}}}"), ("templates/a.yaml", "a: 1\n")],
    );
    let fails = make("fails", &[("templates/a.yaml", "a: {{ fail .Release.Name }}\n")]);
    let panics = make("panics", &[("templates/a.yaml", "a: {{ regexReplaceAll \"(\" \"x\" \"y\" }}\n")]);
    let recursion = make(
        "recursion",
        &[("templates/a.yaml", "{{ define \"again\" }}{{ include \"again\" . }}{{ end }}a: {{ include \"again\" . }}\n")],
    );
    let no_yaml = make("no-yaml", &[("templates/a.yaml", "a: [\n")]);
    let large =
        make("large", &[("templates/a.yaml", "a:\n{{- range until 40000 }}\n  - {{ printf \"%050d\" . }}\n{{- end }}\n")]);
    let empty = make("empty", &[]);
    let missing = make(
        "missing",
        &[("Chart.yaml", "apiVersion: v2\nname: web\nversion: 0.1.0\ndependencies: [{name: sub, version: 1, repository: ''}]\n")],
    );
    let chart = |name: &str, directory: &Path, more: &[&str]| Chart::new(name, directory, more);
    vec![
        chart("plain", &probe, &[]),
        chart("usual", &probe, &USUAL),
        chart("namespace", &probe, &["--namespace", "one"]),
        chart("name", &probe, &["--name-template", "{{ lower \"ABC\" }}"]),
        chart("kube version", &probe, &["--kube-version", "1.29"]),
        chart("wrong kube version", &probe, &["--kube-version", "x"]),
        chart("api versions", &probe, &["--api-versions", "acme.dev/v1", "--api-versions", "b/v1,c/v1"]),
        chart("skipped tests", &probe, &["--skip-tests"]),
        chart("crds", &probe, &["--include-crds"]),
        chart("upgrade", &probe, &["--is-upgrade"]),
        chart("values", &probe, &["--values", "more.yaml", "--set", "mode=set", "--set-string", "deep.a=7"]),
        chart("file", &probe, &["--set-file", "mode=more.yaml"]),
        chart("schema", &probe, &["--set", "mode=1"]),
        chart("skipped schema", &probe, &["--set", "mode=1", "--skip-schema-validation"]),
        chart("no values", &probe, &["--values", "absent.yaml"]),
        chart("debug", &probe, &["--debug"]),
        chart("debug by environment", &probe, &[]).within(("HELM_DEBUG", "true")),
        chart("namespace by environment", &probe, &[]).within(("HELM_NAMESPACE", "two")),
        chart("colour", &probe, &["--color", "always"]),
        chart("wrong colour", &probe, &["--color", "grey"]),
        chart("unknown flag", &probe, &["--no-such-flag"]),
        chart("help", &probe, &["--help"]),
        chart("one file", &probe, &["--show-only", "templates/a.yaml"]),
        chart("no chart", place, &[]),
        chart("too many names", &probe, &["x", "y"]),
        chart("changing", &changing, &[]),
        chart("other", &other, &[]),
        chart("unresolved name", &urn, &[]),
        chart("failing", &fails, &[]),
        chart("failing, debug", &fails, &["--debug"]),
        chart("panicking", &panics, &["--debug"]),
        chart("recursion", &recursion, &[]),
        chart("no YAML", &no_yaml, &[]),
        chart("no YAML, debug", &no_yaml, &["--debug"]),
        chart("large", &large, &[]),
        chart("empty", &empty, &[]),
        chart("missing dependency", &missing, &[]),
    ]
}
