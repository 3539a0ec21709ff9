//! Helm, with the arguments, order and environment of Argo CD's `helmTemplate` (`reposerver/repository/repository.go`,
//! `util/helm/cmd.go`).
//!
//! Three things differ, on purpose: `--set` and its kin come in the order of their names where Go's maps give them at random; a chart
//! whose declared dependencies are missing has them built before the first attempt instead of after it, because their values may say which
//! image a placeholder means; and Helm has no network, so that dependencies and remote value files are fetched here.

mod dependencies;
mod reads;
mod value_files;
mod view;

use std::ffi::OsString;
use std::path::PathBuf;

use super::chart::{self, Chart};
use super::render_cache::Key;
use super::{Inputs, Purpose, RenderError, Rendered, Source, Targets, Tools, environment, text};
use crate::application::Application;
use crate::failure::masked;
use crate::image::printable;
use crate::parameters::HelmOptions;
use crate::placeholder::scans::{InputId, Substituted};
use crate::process::Child;
use crate::workspace::{Checkout, MAX_FILE, Workspace, WorkspaceError, shown};
use value_files::Found;

/// Longest name of a release, in bytes: Helm's own bound.
const MAX_RELEASE: usize = 53;

/// A `helm template`, ready to run.
#[derive(Debug)]
pub struct Plan {
    checkout: Checkout,
    /// Where the chart is: in the checkout, or in the workspace's copy once dependencies were built.
    chart_at: Checkout,
    workspace: Workspace,
    pub(super) inputs: Inputs,
    chart: Chart,
    value_files: Vec<ValueFile>,
    /// `helm-values`, by its input.
    inline: Option<InputId>,
    sets: Vec<Set>,
    /// Name and path for `--set-file`.
    set_files: Vec<(String, PathBuf)>,
    /// What rules will set, with any tag.
    targets: Vec<(String, String)>,
    /// Does no chart come from the network?
    is_local: bool,
    /// Are charts or value files missing because they were not fetched?
    is_partial: bool,
    options: HelmOptions,
    release: String,
    namespace: String,
    kube_version: String,
    api_versions: Vec<String>,
    application: Application,
}

#[derive(Debug)]
enum ValueFile {
    /// Its input, and its path.
    Local(InputId, PathBuf),
    /// Its input, where it is kept.
    Fetched(InputId),
}

#[derive(Debug)]
struct Set {
    flag: &'static str,
    name: String,
    /// Its value's input.
    input: InputId,
}

impl Plan {
    /// Reads the chart, its dependencies' defaults, the value files and parameters.
    ///
    /// # Errors
    ///
    /// [`RenderError`].
    pub async fn prepare(
        checkout: &Checkout,
        application: &Application,
        tools: &Tools,
        purpose: Purpose,
    ) -> Result<Self, RenderError> {
        let options = application.parameters.helm.clone();
        let pick = |own: &Option<String>, other: &str| own.clone().unwrap_or_else(|| other.to_owned());
        let release = pick(&options.release_name, application.short_name());
        check_release(&release, options.release_name.is_some())?;
        checkout.check_links(checkout.app())?;
        let mut workspace = Workspace::create()?;
        let mut chart_at = checkout.clone();
        let mut inputs = Inputs::default();
        let mut chart = chart::read(checkout, checkout.app(), &mut inputs)?;
        let is_local = chart.missing.is_empty() || chart.declared.iter().all(|chart| chart.repository.starts_with("file://"));
        let mut is_partial = !chart.missing.is_empty() && purpose == Purpose::Inspect;
        if !chart.missing.is_empty() && purpose == Purpose::Render {
            dependencies::build(checkout, &mut workspace, &chart, tools).await?;
            inputs = Inputs::default();
            chart_at = Checkout::open(&workspace.root().join(checkout.app()), Some(&checkout.app().to_string_lossy()))?;
            chart = chart::read(&chart_at, chart_at.app(), &mut inputs)?;
        }
        if !options.skip_schema_validation {
            check_schemas(&chart)?;
        }
        let mut value_files = Vec::new();
        for file in value_files::find(checkout, application, &options, tools)? {
            match file {
                Found::Remote(_) if purpose == Purpose::Inspect => is_partial = true,
                Found::Remote(url) => {
                    let id = inputs.add(masked(&url), fetch(&url, tools).await?, Source::Named);
                    value_files.push(ValueFile::Fetched(id));
                }
                Found::Local(path) => {
                    let id = inputs.add(shown(&path), checkout.read(&path)?, Source::Named);
                    value_files.push(ValueFile::Local(id, checkout.root().join(path)));
                }
            }
        }
        let inline = options.values.as_ref().map(|text| inputs.add("parameter `helm-values`", text, Source::Named));
        let mut sets = Vec::new();
        for (flag, parameter, values) in [
            ("--set", "helm-parameters", &options.parameters),
            ("--set-string", "helm-force-string-parameters", &options.force_string_parameters),
        ] {
            for (name, value) in values {
                one_name(&format!("parameter `{parameter}`"), name)?;
                let place = format!("parameter `{parameter}`, key `{}`", printable(name));
                let input = inputs.add(place, value, Source::Parameter);
                sets.push(Set { flag, name: name.clone(), input });
            }
        }
        let mut set_files = Vec::new();
        for (name, path) in &options.file_parameters {
            one_name("parameter `helm-file-parameters`", name)?;
            let found = checkout.resolve_path(checkout.app(), &application.expand(path)).map_err(|source| RenderError::File {
                what: format!("parameter `helm-file-parameters`, key `{}`", printable(name)),
                source,
            })?;
            set_files.push((name.clone(), checkout.root().join(found)));
        }
        Ok(Self {
            release,
            namespace: pick(&options.namespace, &application.namespace),
            kube_version: pick(&options.kube_version, &application.kube_version),
            api_versions: if options.api_versions.is_empty() {
                application.api_versions.clone()
            } else {
                options.api_versions.clone()
            },
            application: application.clone(),
            checkout: checkout.clone(),
            chart_at,
            workspace,
            inputs,
            chart,
            value_files,
            inline,
            sets,
            set_files,
            targets: Vec::new(),
            is_local,
            is_partial,
            options,
        })
    }

    pub(super) fn checkout(&self) -> &Checkout {
        &self.checkout
    }

    /// See [`super::Plan::run`].
    ///
    /// # Errors
    ///
    /// [`RenderError`].
    pub async fn run(&mut self, changed: &Substituted, targets: &Targets, tools: &Tools) -> Result<Rendered, RenderError> {
        let mut arguments: Vec<OsString> = ["template", ".", "--name-template", &self.release].map(OsString::from).into();
        let mut add = |flag: &str, value: OsString| arguments.extend([OsString::from(flag), value]);
        if !self.namespace.is_empty() {
            add("--namespace", self.namespace.clone().into());
        }
        if !self.kube_version.is_empty() {
            add("--kube-version", plain_version(&self.kube_version).into());
        }
        for set in &self.sets {
            // A tag stays a string: `--set` would make a number of `123`.
            let (flag, value) = match changed.get(&set.input) {
                Some(value) if !value.starts_with('{') => ("--set-string", value),
                Some(value) => (set.flag, value),
                None => (set.flag, &self.inputs[set.input].text),
            };
            add(flag, format!("{}={}", set.name, escaped(&self.application.expand(&value.replace("$$(pin", "$$$$(pin")))).into());
        }
        for (name, value) in &targets.helm {
            one_name("a rule's Helm target", name)?;
            add("--set-string", format!("{name}={}", escaped(value)).into());
        }
        for (name, path) in &self.set_files {
            add("--set-file", format!("{name}={}", escaped(&path.to_string_lossy())).into());
        }
        for file in &self.value_files {
            match file {
                ValueFile::Fetched(id) => {
                    let text = changed.get(id).unwrap_or(&self.inputs[*id].text);
                    add("--values", self.workspace.write_extra(&format!("{}.yaml", id.0), text)?.into());
                }
                ValueFile::Local(id, path) => match changed.get(id) {
                    Some(text) => add("--values", self.workspace.write_extra(&format!("{}.yaml", id.0), text)?.into()),
                    None => add("--values", one_field(&path.to_string_lossy()).into()),
                },
            }
        }
        if let Some(id) = self.inline {
            let text = changed.get(&id).unwrap_or(&self.inputs[id].text);
            add("--values", self.workspace.write_extra("values.yaml", text)?.into());
        }
        for version in &self.api_versions {
            add("--api-versions", version.into());
        }
        let flags = [
            ("--include-crds", !self.options.skip_crds),
            ("--skip-schema-validation", self.options.skip_schema_validation),
            ("--skip-tests", self.options.skip_tests),
        ];
        arguments.extend(flags.iter().filter(|(_, on)| *on).map(|(flag, _)| OsString::from(flag)));
        let key = self.key(&arguments, changed, tools);
        let recalled = key.and_then(|key| tools.render_cache.as_ref()?.get(&key));
        if let Some(text) = recalled {
            return Ok(Rendered { text, is_cached: true });
        }
        let in_place = changed.iter().filter_map(|(input, text)| match &self.inputs[*input].source {
            Source::InPlace(path) => Some((path, text)),
            _ => None,
        });
        let in_place: Vec<_> = in_place.collect();
        let is_copied = self.chart_at.root() != self.checkout.root();
        let root = if !is_copied && (in_place.is_empty() || self.checkout.patch_in_place(&in_place)?) {
            self.checkout.root().to_owned()
        } else {
            if !is_copied {
                self.workspace.copy(&self.checkout, self.checkout.app())?;
            }
            for (path, text) in in_place {
                self.workspace.write(path, text)?;
            }
            self.workspace.root()
        };
        let mut helm = child(tools, arguments, root.join(self.checkout.app()), &self.workspace)?;
        helm.sandbox = helm.sandbox.reading(self.checkout.root());
        helm.places = self.checkout.is_own().then(|| self.checkout.root().to_owned()).into_iter().collect();
        helm.places.push(self.workspace.path().to_owned());
        let output = tools.templates.run(&helm).await?;
        if !output.stderr.trim().is_empty() {
            tracing::debug!(stderr = %printable(output.stderr.trim()), "helm wrote to standard error");
        }
        let text = text(output.stdout)?;
        if let (Some(cache), Some(key)) = (&tools.render_cache, key) {
            cache.keep(key, &text);
        }
        Ok(Rendered { text, is_cached: false })
    }

    /// What the text is made from, if all of it is known.
    fn key(&self, arguments: &[OsString], changed: &Substituted, tools: &Tools) -> Option<[u8; 32]> {
        if !self.is_local || tools.render_cache.is_none() {
            return None;
        }
        let mut key = Key::new(&tools.helm, &self.checkout, self.workspace.path())?;
        key.add_words(arguments.iter().map(OsString::as_os_str));
        // A chart may draw a password: another application's is its own, whatever else it has in common.
        for own in [&self.application.name, &self.application.project, &self.application.repo_url] {
            key.add(own.as_bytes());
        }
        self.inputs.with(changed).for_each(|text| key.add(text.as_bytes()));
        Some(key.finish())
    }
}

/// Refuses a chart whose schema of the values, or a dependency's, refers to another document. Helm could not fetch it; this says what to do.
fn check_schemas(chart: &Chart) -> Result<(), RenderError> {
    if let Some(reference) = chart.fetches.first() {
        let what = format!("`values.schema.json` refers to `{}`, which is not permitted", printable(reference));
        let hint = "keep the schema in one file, with references such as `#/$defs/port`; or set `helm-skip-schema-validation`";
        return Err(RenderError::Invalid { what, hint: Some(hint.into()) });
    }
    chart.dependencies.iter().try_for_each(check_schemas)
}

/// Refuses a release name that Helm would refuse. Helm reads it as a template first, which could name the environment.
fn check_release(name: &str, is_parameter: bool) -> Result<(), RenderError> {
    let is_edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(|b| is_edge(*b))
            && bytes.last().is_some_and(|b| is_edge(*b))
            && bytes.iter().all(|b| is_edge(*b) || *b == b'-')
    };
    if name.len() <= MAX_RELEASE && name.split('.').all(is_label) {
        return Ok(());
    }
    let (place, hint) = match is_parameter {
        true => ("parameter `helm-release-name`", "write small letters, digits and `-`, such as `web-dev`"),
        false => ("the application's name, which is the release's", "set the parameter `helm-release-name`"),
    };
    let what = format!("{place}: `{}` is not a release name of at most {MAX_RELEASE} characters", printable(name));
    Err(RenderError::Invalid { what, hint: Some(hint.into()) })
}

/// A value file from elsewhere.
async fn fetch(url: &str, tools: &Tools) -> Result<String, RenderError> {
    let place = || format!("value file `{}`", masked(url));
    let limit = usize::try_from(MAX_FILE).unwrap_or(usize::MAX);
    let bytes = tools.charts.file(url, limit).await;
    let bytes = bytes.map_err(|error| RenderError::Chart { what: place(), source: error.into() })?;
    String::from_utf8(bytes.into()).map_err(|_| WorkspaceError::NotText { path: masked(url) }.into())
}

/// Helm in a home of its own, without plugins and without network. It reads the workspace, and what the caller adds.
fn child(tools: &Tools, arguments: Vec<OsString>, directory: PathBuf, workspace: &Workspace) -> Result<Child, RenderError> {
    let home = workspace.home()?;
    let below = |name: &str| home.join(name).into_os_string();
    // A larger heap before the first collection saves a fifth of a small chart's time.
    let more = [
        ("GOGC", OsString::from("400")),
        ("HELM_CACHE_HOME", below("cache")),
        ("HELM_CONFIG_HOME", below("config")),
        ("HELM_DATA_HOME", below("data")),
        ("HELM_PLUGINS", below("no-plugins")),
    ];
    Ok(Child {
        program: tools.helm.clone(),
        arguments,
        directory,
        environment: environment(&home, &more),
        input: Vec::new(),
        deadline: tools.timeout,
        max_output: tools.max_output,
        places: Vec::new(),
        sandbox: tools.sandboxes.offline(&tools.helm)?.reading(workspace.path()),
    })
}

/// A path as one field: Helm reads `--values` as comma-separated values, so that a comma would name a second file.
fn one_field(path: &str) -> String {
    if path.contains([',', '"', '\n', '\r']) { format!("\"{}\"", path.replace('"', "\"\"")) } else { path.to_owned() }
}

/// Refuses a name that Helm would read as more than one assignment: a second one could name any file, or any address.
fn one_name(place: &str, name: &str) -> Result<(), RenderError> {
    let mut before = ' ';
    for c in name.chars() {
        if matches!(c, '=' | ',' | '{' | '}' | '\n' | '\r') && before != '\\' {
            let what = format!("{place}: `{}` is not the path of one value", printable(name));
            return Err(RenderError::Invalid { what, hint: Some("escape a `,` or `=` of a key with `\\`".into()) });
        }
        before = c;
    }
    Ok(())
}

/// Escapes commas as Argo CD does (`cleanSetParameters`): not in a `{list}`, and not where already escaped.
fn escaped(value: &str) -> String {
    if value.starts_with('{') && value.ends_with('}') {
        return value.to_owned();
    }
    let mut escaped = String::with_capacity(value.len());
    let mut before = ' ';
    for c in value.chars() {
        if c == ',' && before != '\\' {
            escaped.push('\\');
        }
        escaped.push(c);
        before = c;
    }
    escaped
}

/// `x.y.z` of a cluster's version: `v1.34.2-gke.100` is `1.34.2`. What has no numbers stays as it is.
fn plain_version(version: &str) -> String {
    let parts: Vec<&str> = version.trim_start_matches('v').split(['.', '-', '+']).take(3).collect();
    let numbers = parts.iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    if numbers && parts.len() == 3 { parts.join(".") } else { version.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_names_no_second_file_and_no_second_value() {
        assert_eq!(one_field("/a/values.yaml"), "/a/values.yaml");
        assert_eq!(one_field("/a,/etc/passwd"), "\"/a,/etc/passwd\"");
        assert_eq!(one_field("/a\",b"), "\"/a\"\",b\"");
        for name in ["image.tag", "hosts[0].name", r"nodeSelector.kubernetes\.io/os", r"a\,b"] {
            assert!(one_name("x", name).is_ok(), "{name}");
        }
        for name in ["a=/etc/passwd,b", "a,b", "a=b", "a\nb"] {
            assert!(one_name("x", name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_release_name_is_no_template() {
        for name in ["web", "web-dev", "a.b-1", "1", &"a".repeat(53)] {
            assert!(check_release(name, true).is_ok(), "{name}");
        }
        for name in ["", "{{env \"HOME\"}}", "Web", "-a", "a-", "a..b", "a_b", ".a", "a\nb", "é", &"a".repeat(54)] {
            assert!(check_release(name, true).is_err(), "{name}");
        }
    }

    /// Rows of Argo CD's `TestHelmArgCleaner`.
    #[test]
    fn commas_are_escaped_as_argo_cd_does() {
        for (value, expected) in
            [(r"val", r"val"), (r"not, clean", r"not\, clean"), (r"a\,b,c", r"a\,b\,c"), (r"{a,b,c}", r"{a,b,c}"), (r",", r"\,")]
        {
            assert_eq!(escaped(value), expected);
        }
    }

    #[test]
    fn versions_are_made_plain() {
        for (version, expected) in [("v1.34.2-gke.100", "1.34.2"), ("1.36.0", "1.36.0"), ("1.34", "1.34"), ("1.34+", "1.34+")] {
            assert_eq!(plain_version(version), expected);
        }
    }
}
