//! `pinion generate` and `pinion check` with Application manifests, as on a laptop or in CI.

use crate::fixtures::write;
use crate::support::driver::Driver;
use crate::support::registry::FakeRegistry;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pinion");

struct Repository {
    dir: tempfile::TempDir,
    driver: Driver,
    _registry: FakeRegistry,
}

impl Repository {
    async fn new(files: &[(&str, &str)]) -> Self {
        let registry = FakeRegistry::start().await;
        registry.tags("acme/web", ["1.0.0", "1.1.0", "2.0.0"]);
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), files);
        let driver = Driver::new(PROGRAM, &registry).within(dir.path());
        Self { dir, driver, _registry: registry }
    }

    fn ok(&self, words: &[&str]) -> String {
        self.driver.run(words).ok()
    }

    fn err(&self, words: &[&str]) -> String {
        self.driver.run(words).err()
    }
}

/// A pod whose image has this tag.
fn pod(name: &str, tag: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: x, image: 'ghcr.io/acme/web:{tag}'}}]}}\n"
    )
}

fn application(spec: &str) -> String {
    format!("apiVersion: argoproj.io/v1alpha1\nkind: Application\nmetadata: {{name: web}}\nspec: {spec}\n")
}

const SOURCES: &str = "{sources: [
  {repoURL: x, path: one, name: first, plugin: {name: pinion@v1}},
  {repoURL: x, chart: redis, helm: {releaseName: redis}},
  {repoURL: x, path: two, plugin: {name: pinion@v1}},
  {repoURL: x, path: three, plugin: {name: cdk8s}}]}";

#[tokio::test(flavor = "multi_thread")]
async fn every_source_of_ours_is_rendered_in_its_order() {
    let (one, two) = (pod("one", "$(pin ~1)"), pod("two", "$(pin ~2)"));
    let app = application(SOURCES);
    let files = [("one/pod.yaml", one.as_str()), ("two/pod.yaml", &two), ("app.yaml", &app)];
    let repository = Repository::new(&files).await;
    let ran = repository.driver.run(["generate", "--application", "app.yaml", "--explain", "--write-pins", "pins.yaml"]);
    assert!(ran.stderr.contains("source 2 (`redis`) is left to Argo CD's own helm"), "{}", ran.stderr);
    assert!(ran.stderr.contains("source 4 (`three`) is left to the plugin `cdk8s`"), "{}", ran.stderr);
    assert!(ran.stderr.contains("source 1 (`one`)\nIMAGE") && ran.stderr.contains("source 3 (`two`)\nIMAGE"), "{}", ran.stderr);
    let expected = format!("{}---\n{}", pod("one", "1.1.0"), pod("two", "2.0.0"));
    assert_eq!(ran.ok(), expected);
    let pins = std::fs::read_to_string(repository.dir.path().join("pins.yaml")).expect("written");
    assert!(pins.contains("1.1.0") && pins.contains("2.0.0"), "{pins}");
    for source in ["first", "1"] {
        assert_eq!(repository.ok(&["generate", "-a", "app.yaml", "--source", source]), pod("one", "1.1.0"));
    }
    assert_eq!(repository.ok(&["generate", "-a", "app.yaml", "--source", "3"]), pod("two", "2.0.0"));
    let error = repository.err(&["generate", "-a", "app.yaml", "--source", "5"]);
    assert_eq!(error, "error: app.yaml: there is no source `5`\n  hint: the sources are first, 2, 3, 4");
    assert_eq!(repository.driver.run(["generate", "--source", "1"]).status, 2, "without a manifest there is one source");
    repository.ok(&["check", "-a", "app.yaml"]);
    // A pin that one source holds by its parameter is not that of the other.
    let held = "{name: pinion@v1, parameters: [{name: pins, map: {ghcr.io/acme/web: 1.0.0}}]}";
    let app = application(&SOURCES.replacen("{name: pinion@v1}", held, 1));
    let one = pod("one", "$(pin ~1)");
    write(repository.dir.path(), &[("two/pod.yaml", one.as_str()), ("held.yaml", &app)]);
    repository.ok(&["generate", "-a", "held.yaml", "--write-pins", "pins.yaml"]);
    let pins = std::fs::read_to_string(repository.dir.path().join("pins.yaml")).expect("written");
    assert!(pins.contains("1.1.0") && !pins.contains("1.0.0"), "{pins}");
    let both = application(&SOURCES.replacen("{name: pinion@v1}", held, 1).replacen(
        "{name: pinion@v1}",
        &held.replace("1.0.0", "1.1.0"),
        1,
    ));
    write(repository.dir.path(), &[("both.yaml", &both)]);
    let error = repository.err(&["generate", "-a", "both.yaml", "--write-pins", "none.yaml"]);
    assert!(error.contains("has two pins, `1.0.0` and `1.1.0`") && error.contains("--source"), "{error}");
    assert!(!repository.dir.path().join("none.yaml").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_all_sources_are_told_with_their_source() {
    let (one, two) = (pod("one", "$(pin ~7)"), pod("two", "$(pin ~~2)"));
    let app = application(SOURCES);
    let files = [("one/pod.yaml", one.as_str()), ("two/pod.yaml", &two), ("app.yaml", &app)];
    let repository = Repository::new(&files).await;
    let error = repository.err(&["generate", "-a", "app.yaml"]);
    assert!(
        error.contains("source 1 (`one`): one/pod.yaml:4:") && error.contains("source 3 (`two`): two/pod.yaml:4:"),
        "{error}"
    );
    std::fs::remove_dir_all(repository.dir.path().join("two")).expect("removed");
    let error = repository.err(&["generate", "-a", "app.yaml"]);
    assert!(error.contains("app.yaml, source 3 (`two`): `source.path` `two` is not in `.`\n  hint: "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_not_there_is_an_error() {
    let web = pod("web", "$(pin ~1)");
    let app = application("{source: {path: apps/web, plugin: {name: pinion@v1}}}");
    let repository = Repository::new(&[("apps/web/pod.yaml", web.as_str()), ("apps/pod.yaml", &web), ("app.yaml", &app)]).await;
    for dir in [".", "apps/web", "apps/../apps/web/"] {
        assert_eq!(repository.ok(&["generate", dir, "-a", "app.yaml"]), pod("web", "1.1.0"), "{dir}");
    }
    write(repository.dir.path(), &[("other/web/pod.yaml", &pod("other", "$(pin ~2)"))]);
    let error = repository.err(&["generate", "other/web", "-a", "app.yaml"]);
    assert!(error.contains("`source.path` `apps/web` is not in `other/web`"), "another directory of that name: {error}");
    let error = repository.err(&["generate", "nowhere", "-a", "app.yaml"]);
    assert!(error.starts_with("error: nowhere: "), "the manifest is not to blame: {error}");
    write(repository.dir.path(), &[("apps/web/.argocd-source.yaml", "plugin: {parameters: [{name: nope, string: x}]}\n")]);
    let error = repository.err(&["generate", "-a", "app.yaml"]);
    assert!(error.contains("apps/web/.argocd-source.yaml: unknown parameter `nope`"), "{error}");
    write(repository.dir.path(), &[("apps/web/.argocd-source.yaml", ""), ("apps/web/.pinion.yml", "")]);
    for command in ["generate", "check"] {
        let error = repository.err(&[command, ".", "-a", "app.yaml"]);
        let wanted = "apps/web/.pinion.yml: a file of this name is not read\n  hint: name it `.pinion.yaml`";
        assert_eq!(error.matches(wanted).count(), 1, "{error}");
    }
    std::fs::remove_file(repository.dir.path().join("apps/web/.pinion.yml")).expect("removed");
    let error = repository.err(&["generate", "apps", "-a", "app.yaml"]);
    assert!(
        error.starts_with("error: app.yaml: `source.path` `apps/web` is not in `apps`\n  hint: name the repository's root"),
        "{error}"
    );
    let error = repository.err(&["check", "apps", "-a", "app.yaml"]);
    assert!(error.contains("`source.path` `apps/web` is not in `apps`"), "{error}");
}

/// Argo CD starts the command in the application's directory, whatever is below it.
#[tokio::test(flavor = "multi_thread")]
async fn in_argo_cd_the_working_directory_is_the_application() {
    let (outer, inner) = (pod("outer", "$(pin ~1)"), pod("inner", "$(pin ~2)"));
    let repository = Repository::new(&[("web/pod.yaml", outer.as_str()), ("web/web/pod.yaml", &inner)]).await;
    let driver = repository.driver.env("ARGOCD_APP_SOURCE_PATH", "web").within(repository.dir.path().join("web"));
    assert_eq!(driver.run(["generate"]).ok(), pod("outer", "1.1.0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_of_others_are_refused_with_what_to_write() {
    let web = pod("web", "$(pin ~1)");
    let other = application("{source: {path: web, plugin: {name: cdk8s}}}");
    let native = application("{source: {path: web, helm: {valueFiles: [dev.yaml], skipCrds: true}}}");
    let text =
        application("{source: {path: web, plugin: {name: pinion@v1, parameters: [{name: helm-skip-crds, string: true}]}}}");
    let files = [("web/pod.yaml", web.as_str()), ("other.yaml", &other), ("native.yaml", &native), ("text.yaml", &text)];
    let repository = Repository::new(&files).await;
    let error = repository.err(&["generate", "-a", "other.yaml"]);
    assert!(error.contains("is rendered by the plugin `cdk8s`, which is not Pinion"), "{error}");
    assert_eq!(repository.ok(&["generate", "-a", "other.yaml", "--plugin-name", "cdk8s"]), pod("web", "1.1.0"));
    assert_eq!(
        repository.err(&["generate", "-a", "native.yaml"]),
        "error: native.yaml: Application `web` has no source with a `plugin` block
  hint: replace `helm` in `spec.source` with
    plugin:
      name: pinion@v1
      parameters:
      - name: renderer
        string: helm
      - name: helm-value-files
        array:
        - dev.yaml
      - name: helm-skip-crds
        string: 'true'"
    );
    assert_eq!(
        repository.err(&["generate", "-a", "text.yaml"]),
        "error: text.yaml: line 4: parameter `helm-skip-crds`: `string` is `true`, which Kubernetes does not read as text
  hint: write it in quotes: `\"true\"`"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn application_sets_and_dry_sources_are_rendered() {
    let web = pod("web", "$(pin @web)");
    let set = "apiVersion: argoproj.io/v1alpha1
kind: ApplicationSet
metadata: {name: web}
spec:
  generators: [{list: {elements: [{env: dev, range: ~2}, {env: prd, range: ~1}]}}]
  template:
    metadata: {name: 'web-{{env}}'}
    spec:
      source:
        path: web
        plugin:
          name: pinion@v1
          parameters: [{name: images, array: ['web=ghcr.io/acme/web:{{range}}']}]
";
    let dry = application(
        "{sourceHydrator: {drySource: {path: web, plugin: {name: pinion@v1, parameters: [{name: images, array: ['web=ghcr.io/acme/web:~1']}]}}, syncSource: {path: x, targetBranch: env}}}",
    );
    let repository = Repository::new(&[("web/pod.yaml", web.as_str()), ("set.yaml", set), ("dry.yaml", &dry)]).await;
    assert_eq!(repository.ok(&["generate", "-a", "set.yaml", "--set", "env=dev"]), pod("web", "2.0.0"));
    assert_eq!(repository.ok(&["generate", "-a", "set.yaml", "--set", "env=prd"]), pod("web", "1.1.0"));
    assert_eq!(repository.ok(&["generate", "-a", "set.yaml", "--set", "env=qa", "--set", "range=1.0.0"]), pod("web", "1.0.0"));
    assert_eq!(
        repository.err(&["generate", "-a", "set.yaml"]),
        "error: set.yaml: the template needs a value for `env`, `range`
  hint: choose an element of the list generator: `--set env=dev`, `--set env=prd`"
    );
    repository.ok(&["check", "-a", "set.yaml", "--set", "env=dev"]);
    assert_eq!(repository.ok(&["generate", "-a", "dry.yaml"]), pod("web", "1.1.0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_each_mistake_once_by_the_path_that_the_user_writes() {
    let app = application(
        "{source: {path: charts/web, plugin: {name: pinion@v1, parameters: [{name: helm-value-files, array: [../../dev.yaml]}]}}}",
    );
    let files = [
        ("charts/web/Chart.yaml", "apiVersion: v2\nname: web\nversion: 0.1.0\n"),
        ("charts/web/values.yaml", "a: {tag: $(pin ~~1)}\nb: {tag: $(pin ~1)}\n"),
        ("dev.yaml", "c: {repository: a/b, tag: $(pin ~1 --nope)}\n"),
        (".git/HEAD", "ref: x\n"),
        ("app.yaml", app.as_str()),
    ];
    let repository = Repository::new(&files).await;
    let error = repository.err(&["check", "-a", "app.yaml"]);
    for place in ["charts/web/values.yaml:1:10: ", "charts/web/values.yaml:2:10: ", "dev.yaml:1:27: "] {
        assert_eq!(error.matches(place).count(), 1, "{place}: {error}");
    }
    assert_eq!(error.matches("hint: ").count(), 3, "{error}");
    let absolute = repository.dir.path().join("app.yaml").display().to_string();
    let within = repository.driver.within(repository.dir.path().join("charts"));
    let error = within.run(["check", "web", "-a", &absolute]).err();
    assert_eq!(error.matches("web/values.yaml:1:10: ").count(), 1, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_what_a_render_would_only_log() {
    let app = application("{source: {path: ., plugin: {name: pinion@v1, parameters: [{name: pins, map: {wep: 1.0.0}}]}}}");
    let rules = "apiVersion: pinion.dev/v1
kind: Rules
images:
- {alias: web, imageName: 'ghcr.io/acme/web:~1', manifestTargets: {helm: {tag: image.tagg}}}
- {alias: api, imageName: 'ghcr.io/acme/api:~1', manifestTargets: {helm: {name: api.name, tag: api.tag}}}
";
    let files = [
        ("Chart.yaml", "apiVersion: v2\nname: web\nversion: 0.1.0\n"),
        ("values.yaml", "image: {repository: ghcr.io/acme/web, tag: '${pin ~1}'}\napi: {}\n"),
        (
            "templates/a.yaml",
            "image: \"a/b:$(Pin ~1)\"\napi: {{ .Values.api.name }}:{{ .Values.api.tag }}\nshell: \"echo ${PIN} $(ping host)\"\n",
        ),
        (".pinion.yaml", rules),
        ("app.yaml", app.as_str()),
    ];
    let repository = Repository::new(&files).await;
    let error = repository.err(&["check", "-a", "app.yaml"]);
    for wanted in [
        "values.yaml:1:45: `${pin ~1}` is no placeholder\n  hint: did you mean `$(pin ~1)`?",
        "templates/a.yaml:1:13: `$(Pin ~1)` is no placeholder\n  hint: did you mean `$(pin ~1)`?",
        "rule `web`: the target `image.tagg` is no single value that the chart reads",
        "parameter `pins`: `wep` is no alias and no image that the application asks for\n  hint: it asks for `api`, `web`",
    ] {
        assert!(error.contains(wanted), "{wanted}\n{error}");
    }
    assert!(!error.contains("rule `api`") && !error.contains("ping") && !error.contains("PIN"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_cannot_work_are_told() {
    let web = pod("web", "$(pin ~1 --pull-secret pullsecret:argocd/ghcr)");
    let app = application("{source: {path: ., plugin: {name: pinion@v1}}}");
    let repository = Repository::new(&[("pod.yaml", web.as_str()), ("app.yaml", &app)]).await;
    let conf = "registries:
- {name: a, prefix: a.example, api_url: 'https://a.example', credentials: 'env:NO_SUCH_VARIABLE'}
- {name: b, prefix: b.example, api_url: 'https://b.example', credentials: 'ext:/no/such/script'}
- {name: c, prefix: c.example, api_url: 'https://c.example', credentials: 'pullsecret:argocd/c'}
- {name: d, prefix: d.example, api_url: 'https://d.example', credentials: 'env:THERE'}
";
    std::fs::write(repository.driver.home().join("registries.conf"), conf).expect("written");
    let driver = repository.driver.env("THERE", "user:s3cret");
    let ran = driver.run(["check", "-a", "app.yaml"]);
    for wanted in [
        "registry `a`: the credential `env:NO_SUCH_VARIABLE` cannot be used: the environment variable `NO_SUCH_VARIABLE` is not set",
        "registry `b`: the credential `ext:/no/such/script` cannot be used: No such file",
        "registry `c`: the credential `pullsecret:argocd/c` cannot be used: this version does not read Kubernetes secrets",
        "pod.yaml:4:56: the credential `pullsecret:argocd/ghcr` cannot be used: ",
    ] {
        assert!(ran.stderr.contains(wanted), "{wanted}\n{}", ran.stderr);
    }
    assert!(!ran.stderr.contains("registry `d`") && !ran.stderr.contains("s3cret"), "{}", ran.stderr);
    let serving = crate::support::argocd::Serving::start(PROGRAM, &driver, &[]);
    assert_eq!(serving.log().matches("cannot be used: ").count(), 3, "{}", serving.log());
}
