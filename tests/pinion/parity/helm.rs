//! Charts of many kinds, against `helm template`.

use serde_json::{Value, json};

use super::{Files, api_versions, array, assert_same, has_tools, map, native, pinion, string};
use crate::fixtures::write;

const CHART: (&str, &str) = ("Chart.yaml", "apiVersion: v2\nname: chart\nversion: 1.2.3\nappVersion: \"4\"\n");

const POD: (&str, &str) = (
    "templates/pod.yaml",
    "apiVersion: v1\nkind: Pod\nmetadata: {name: {{ .Release.Name }}}\nspec: {containers: [{name: web, image: \"{{ .Values.image.repository }}:{{ .Values.image.tag }}\"}]}\n",
);

/// Asserts that Pinion gives what Helm gives with these arguments between those of every render.
async fn same(files: Files<'_>, parameters: Value, middle: &[&str], flags: &[&str]) {
    same_at("", files, parameters, files, middle, flags).await;
}

async fn same_at(path: &str, files: Files<'_>, parameters: Value, concrete: Files<'_>, middle: &[&str], flags: &[&str]) {
    if !has_tools() {
        return;
    }
    let found = pinion(files, path, parameters).await;
    let place = tempfile::tempdir().expect("a directory");
    let home = tempfile::tempdir().expect("a directory");
    write(place.path(), concrete);
    let start = ["template", ".", "--name-template", "web", "--namespace", "prod", "--kube-version", "1.34.2"];
    let versions: Vec<&str> = api_versions().collect();
    let arguments = [&start, middle, &versions, flags].concat();
    assert_same(&found, &native("helm", &place.path().join(path), home.path(), &arguments));
}

const CRDS: &[&str] = &["--include-crds"];

#[tokio::test]
async fn subcharts_with_aliases_conditions_and_tags() {
    let chart = "\
apiVersion: v2
name: chart
version: 1.2.3
dependencies:
- {name: sub, version: '*', alias: one}
- {name: sub, version: '*', alias: two, condition: two.enabled}
- {name: sub, version: '*', alias: three, tags: [extra]}
- {name: sub, version: '*', alias: four, tags: [extra], condition: four.enabled}
- {name: other, version: '>=0.1', import-values: [{child: data, parent: imported}]}
";
    let template = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: \"{{ .Release.Name }}-{{ .Chart.Name }}\"}
data: {{ dict \"values\" (toJson .Values) \"global\" (toJson .Values.global) | toYaml | nindent 2 }}
";
    let files = [
        ("Chart.yaml", chart),
        ("values.yaml", "global: {a: 1}\ntwo: {enabled: false}\ntags: {extra: false}\nfour: {enabled: true}\none: {x: null}\n"),
        ("templates/all.yaml", template),
        ("charts/sub/Chart.yaml", "apiVersion: v2\nname: sub\nversion: 0.1.0\n"),
        ("charts/sub/values.yaml", "x: 1\ny: [1, 2]\n"),
        ("charts/sub/templates/all.yaml", template),
        ("charts/other/Chart.yaml", "apiVersion: v2\nname: other\nversion: 0.1.0\n"),
        ("charts/other/values.yaml", "data: {z: 1}\n"),
        ("charts/other/charts/deep/Chart.yaml", "apiVersion: v1\nname: deep\nversion: 0.1.0\n"),
        ("charts/other/charts/deep/templates/all.yaml", template),
    ];
    same(&files, json!([]), &[], CRDS).await;
}

#[tokio::test]
async fn files_of_the_chart() {
    let template = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: files}
data:
  one: {{ .Files.Get \"config/one.txt\" | quote }}
{{ (.Files.Glob \"config/**\").AsConfig | indent 2 }}
binaryData:
{{ (.Files.Glob \"config/*\").AsSecrets | indent 2 }}
";
    let files = [
        CHART,
        ("templates/files.yaml", template),
        ("config/one.txt", "$(PIN) is none, $$(X) neither\n"),
        ("config/deep/two.txt", "two\r\n"),
        (".helmignore", "*.bak\n"),
        ("config/no.bak", "no\n"),
    ];
    same(&files, json!([]), &[], CRDS).await;
}

#[tokio::test]
async fn custom_resource_definitions_are_included_unless_skipped() {
    let crd = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: x.example.com}\n";
    let files = [CHART, POD, ("values.yaml", "image: {repository: a/b, tag: '1'}\n"), ("crds/x.yaml", crd)];
    same(&files, json!([]), &[], CRDS).await;
    same(&files, json!([string("helm-skip-crds", "true")]), &[], &[]).await;
}

#[tokio::test]
async fn hooks_stay_and_tests_go_when_skipped() {
    let hook = |kind: &str| {
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: {kind}\n  annotations: {{\"helm.sh/hook\": {kind}, \"helm.sh/hook-weight\": \"1\"}}\n"
        )
    };
    let (before, test) = (hook("pre-install"), hook("test"));
    let values = ("values.yaml", "image: {repository: a/b, tag: '1'}\n");
    let files = [CHART, POD, values, ("templates/hook.yaml", before.as_str()), ("templates/tests/test.yaml", test.as_str())];
    same(&files, json!([]), &[], CRDS).await;
    same(&files, json!([string("helm-skip-tests", "true")]), &[], &["--include-crds", "--skip-tests"]).await;
}

#[tokio::test]
async fn notes_and_library_charts() {
    let files = [
        ("Chart.yaml", "apiVersion: v2\nname: chart\nversion: 1.2.3\ndependencies: [{name: library, version: '*'}]\n"),
        ("templates/NOTES.txt", "{{ .Release.Name }}: $(pin nothing that counts\n"),
        ("templates/all.yaml", "{{ include \"library.pod\" . }}\n"),
        ("charts/library/Chart.yaml", "apiVersion: v2\nname: library\nversion: 0.1.0\ntype: library\n"),
        (
            "charts/library/templates/_pod.tpl",
            "{{- define \"library.pod\" -}}\napiVersion: v1\nkind: Pod\nmetadata: {name: {{ .Chart.Name }}}\n{{- end }}\n",
        ),
    ];
    same(&files, json!([]), &[], CRDS).await;
}

const SHOW: (&str, &str) = (
    "templates/show.yaml",
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: show}\ndata:\n  values: |\n    {{- toYaml .Values | nindent 4 }}\n",
);

#[tokio::test]
async fn value_files_keep_their_order() {
    let files = [
        ("apps/web/Chart.yaml", CHART.1),
        ("apps/web/templates/show.yaml", SHOW.1),
        ("apps/web/values/a.yaml", "a: 1\nlast: a\n"),
        ("apps/web/values/b.yaml", "b: 1\nlast: b\n"),
        ("apps/web/values/sub/c.yaml", "c: 1\nlast: c\n"),
        ("shared/prod.yaml", "shared: 1\nlast: shared\n"),
    ];
    let parameters = json!([
        array(
            "helm-value-files",
            &["values/b.yaml", "values/**/*.yaml", "none.yaml", "/shared/$ARGOCD_APP_NAMESPACE.yaml", "../none/*.yaml"]
        ),
        string("helm-ignore-missing-value-files", "true"),
        string("helm-values", "inline: 1\n"),
    ]);
    let middle = [
        "--values",
        "values/b.yaml",
        "--values",
        "values/a.yaml",
        "--values",
        "values/sub/c.yaml",
        "--values",
        "../../shared/prod.yaml",
        "--values",
        "inline.yaml",
    ];
    let concrete: Vec<_> = files.iter().copied().chain([("apps/web/inline.yaml", "inline: 1\n")]).collect();
    same_at("apps/web", &files, parameters, &concrete, &middle, CRDS).await;
}

#[tokio::test]
async fn single_values() {
    let files = [CHART, SHOW, ("values.yaml", "list: []\n"), ("text.txt", "a, b\n{c}\n")];
    let parameters = json!([
        map(
            "helm-parameters",
            &[
                ("a", "1"),
                ("b", "x,y"),
                ("c", "{p,q}"),
                ("d", r"x\,y"),
                ("e", "null"),
                ("f", "true"),
                ("list[0].name", "$ARGOCD_APP_NAME"),
                (r"g\.h", "$$x")
            ]
        ),
        map("helm-force-string-parameters", &[("s", "0123"), ("t", "a,b")]),
        map("helm-file-parameters", &[("file", "text.txt")]),
    ]);
    let middle = [
        "--set",
        "a=1",
        "--set",
        r"b=x\,y",
        "--set",
        "c={p,q}",
        "--set",
        r"d=x\,y",
        "--set",
        "e=null",
        "--set",
        "f=true",
        "--set",
        r"g\.h=$x",
        "--set",
        "list[0].name=web",
        "--set-string",
        "s=0123",
        "--set-string",
        r"t=a\,b",
        "--set-file",
        "file=text.txt",
    ];
    same(&files, parameters, &middle, CRDS).await;
}

#[tokio::test]
async fn release_namespace_and_capabilities() {
    let template = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}, namespace: {{ .Release.Namespace }}}
data:
  version: {{ .Capabilities.KubeVersion.Version }}
  versions: {{ .Capabilities.APIVersions | toJson | quote }}
  revision: {{ .Release.Revision | quote }}
  service: {{ .Release.Service }}
";
    let files = [CHART, ("templates/show.yaml", template)];
    same(&files, json!([]), &[], CRDS).await;
    let parameters = json!([
        string("helm-release-name", "other"),
        string("helm-namespace", "elsewhere"),
        string("helm-kube-version", "v1.31.4-gke.100"),
        array("helm-api-versions", &["example.com/v1/Thing"]),
    ]);
    if !has_tools() {
        return;
    }
    let found = pinion(&files, "", parameters).await;
    let place = tempfile::tempdir().expect("a directory");
    write(place.path(), &files);
    let arguments = [
        "template",
        ".",
        "--name-template",
        "other",
        "--namespace",
        "elsewhere",
        "--kube-version",
        "1.31.4",
        "--api-versions",
        "example.com/v1/Thing",
        "--include-crds",
    ];
    assert_same(&found, &native("helm", place.path(), place.path(), &arguments));
}

#[tokio::test]
async fn schema_validation_can_be_skipped() {
    let schema = "{\"$schema\": \"http://json-schema.org/draft-07/schema#\", \"required\": [\"never\"]}\n";
    let files = [CHART, SHOW, ("values.yaml", "a: 1\n"), ("values.schema.json", schema)];
    same(&files, json!([string("helm-skip-schema-validation", "true")]), &[], &["--include-crds", "--skip-schema-validation"])
        .await;
}

#[tokio::test]
async fn two_megabytes_of_output() {
    let template = "\
{{- range $i := until 2000 }}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: \"c{{ $i }}\"}
data:
  text: |
    {{ repeat 100 \"0123456789\" }}
    é $(NAME) {{ $i }}
{{- end }}
";
    same(&[CHART, ("templates/many.yaml", template)], json!([]), &[], CRDS).await;
}

#[tokio::test]
async fn windows_line_ends_comments_and_odd_layout() {
    let template = "# first\r\n---\r\n# a comment: {{ .Values.a }}\r\napiVersion: v1\r\nkind: ConfigMap\r\nmetadata:\r\n    name:   odd   # why\r\ndata: {a: 'b',\r\n   c: \"d\"}\r\n--- # second\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndata:\n  text: >+\n    x\n\n\n...\n";
    same(&[CHART, ("templates/odd.yaml", template), ("values.yaml", "a: 1 # x\r\nb: |\r\n  y\r\n")], json!([]), &[], CRDS).await;
}

#[tokio::test]
async fn a_placeholder_gives_what_its_tag_written_by_hand_gives() {
    let values = |tag: &str, digits: &str| {
        format!(
            "# defaults\nimage: {{repository: ghcr.io/acme/web, tag: {tag}}}   # x\r\ndigits:\n  image: ghcr.io/acme/digits\n  tag: {digits} # y\n"
        )
    };
    let (placeholder, concrete) = (values("$(pin ~1)", "$(pin numerical)"), values("\"1.10.0\"", "\"123\""));
    fn all(values: &str) -> [(&str, &str); 4] {
        [CHART, POD, SHOW, ("values.yaml", values)]
    }
    same_at("", &all(&placeholder), json!([]), &all(&concrete), &[], CRDS).await;
}
