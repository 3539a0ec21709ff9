//! Helm, with the arguments, order and environment of Argo CD's `helmTemplate` (`reposerver/repository/repository.go`,
//! `util/helm/cmd.go`).
//!
//! Two things differ, on purpose: `--set` and its kin come in the order of their names where Go's maps give them at random, and a
//! chart whose declared dependencies are missing has them built before the first attempt instead of after it, because their values
//! may say which image a placeholder means.

mod value_files;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use sha2::Digest as _;

use super::chart::{self, Chart, Values};
use super::memo::Key;
use super::{Data, RenderError, Source, Targets, Tools, any_placeholder, environment, text};
use crate::application::Application;
use crate::image::{Repository, printable};
use crate::parameters::HelmOptions;
use crate::placeholder::image::ImageNotFound;
use crate::placeholder::{Scan, Site};
use crate::process::{Child, Runner};
use crate::values::Value;
use crate::workspace::{ANY_DEPTH, Checkout, Workspace, shown};
use crate::yaml::{NodeId, Tree};
use value_files::Found;

/// A `helm template`, ready to run.
#[derive(Debug)]
pub struct Plan {
    checkout: Checkout,
    /// Where the chart is: in the checkout, or in the workspace's copy once dependencies were built.
    chart_at: Checkout,
    workspace: Workspace,
    data: Vec<Data>,
    chart: Chart,
    value_files: Vec<ValueFile>,
    /// `helm-values`, by its place among the data.
    inline: Option<usize>,
    sets: Vec<Set>,
    /// Name and path for `--set-file`.
    set_files: Vec<(String, PathBuf)>,
    /// Does nothing come from the network?
    is_local: bool,
    /// Does the schema of the values come from the network?
    fetches: bool,
    /// Did the last text come from the memo?
    pub(super) is_recalled: bool,
    options: HelmOptions,
    release: String,
    namespace: String,
    kube_version: String,
    api_versions: Vec<String>,
    application: Application,
}

#[derive(Debug)]
enum ValueFile {
    /// Its place among the data, and its path.
    Local(usize, PathBuf),
    /// Fetched by Helm itself.
    Remote(String),
}

#[derive(Debug)]
struct Set {
    flag: &'static str,
    name: String,
    /// Its value's place among the data.
    data: usize,
}

impl Plan {
    /// Reads the chart, its dependencies' defaults, the value files and parameters.
    ///
    /// # Errors
    ///
    /// [`RenderError`].
    pub async fn prepare(checkout: &Checkout, application: &Application, tools: &Tools) -> Result<Self, RenderError> {
        let options = application.parameters.helm.clone();
        checkout.check_links(checkout.app())?;
        let mut workspace = Workspace::create()?;
        let mut chart_at = checkout.clone();
        let mut data = Vec::new();
        let mut chart = chart::read(checkout, checkout.app(), &mut data)?;
        let is_local = chart.missing.is_empty() || chart.declared.iter().all(|chart| chart.repository.starts_with("file://"));
        if !chart.missing.is_empty() {
            build_dependencies(checkout, &mut workspace, &chart, tools).await?;
            data.clear();
            chart_at = Checkout::open(&workspace.root().join(checkout.app()), Some(&checkout.app().to_string_lossy()))?;
            chart = chart::read(&chart_at, chart_at.app(), &mut data)?;
        }
        let fetches = if options.skip_schema_validation { false } else { fetches(&chart, tools)? };
        let mut value_files = Vec::new();
        for file in value_files::find(checkout, application, &options, tools)? {
            value_files.push(match file {
                Found::Remote(url) => ValueFile::Remote(url),
                Found::Local(path) => {
                    data.push(Data { name: shown(&path), text: checkout.read(&path)?, source: Source::Named });
                    ValueFile::Local(data.len() - 1, checkout.root().join(path))
                }
            });
        }
        let inline = options.values.as_ref().map(|text| {
            data.push(Data { name: "parameter `helm-values`".into(), text: text.clone(), source: Source::Named });
            data.len() - 1
        });
        let mut sets = Vec::new();
        for (flag, parameter, values) in [
            ("--set", "helm-parameters", &options.parameters),
            ("--set-string", "helm-force-string-parameters", &options.force_string_parameters),
        ] {
            for (name, value) in values {
                one_name(&format!("parameter `{parameter}`"), name)?;
                let place = format!("parameter `{parameter}`, key `{}`", printable(name));
                data.push(Data { name: place, text: value.clone(), source: Source::Parameter });
                sets.push(Set { flag, name: name.clone(), data: data.len() - 1 });
            }
        }
        let mut set_files = Vec::new();
        for (name, path) in &options.file_parameters {
            one_name("parameter `helm-file-parameters`", name)?;
            let found = checkout.find(checkout.app(), &application.expand(path)).map_err(|source| RenderError::File {
                what: format!("parameter `helm-file-parameters`, key `{}`", printable(name)),
                source,
            })?;
            set_files.push((name.clone(), checkout.root().join(found)));
        }
        let is_local = is_local && !fetches && value_files.iter().all(|file| matches!(file, ValueFile::Local(..)));
        let pick = |own: &Option<String>, other: &str| own.clone().unwrap_or_else(|| other.to_owned());
        Ok(Self {
            release: pick(&options.release_name, application.short_name()),
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
            data,
            chart,
            value_files,
            inline,
            sets,
            set_files,
            is_local,
            fetches,
            is_recalled: false,
            options,
        })
    }

    pub(super) fn checkout(&self) -> &Checkout {
        &self.checkout
    }

    pub fn data(&self) -> &[Data] {
        &self.data
    }

    /// See [`super::Plan::images`].
    ///
    /// # Errors
    ///
    /// When the values cannot be merged.
    pub fn images(&self, scans: &[Option<Scan<'_>>]) -> Result<BTreeMap<Site, Result<Repository, ImageNotFound>>, RenderError> {
        if scans.iter().all(Option::is_none) {
            return Ok(BTreeMap::new());
        }
        Ok(self.view(scans)?.images())
    }

    /// The values that Helm will merge, without those of dependencies that are switched off.
    fn view(&self, scans: &[Option<Scan<'_>>]) -> Result<Value, RenderError> {
        let mut view = self.defaults(&self.chart, scans)?;
        for file in &self.value_files {
            if let ValueFile::Local(data, _) = file {
                view.merge(self.read(*data, scans)?);
            }
        }
        if let Some(data) = self.inline {
            view.merge(self.read(data, scans)?);
        }
        for set in &self.sets {
            let sites =
                scans[set.data].iter().flat_map(|scan| (0..scan.placeholders.len()).map(|index| (set.data, index))).collect();
            view.merge(Value::set(&set.name, &self.data[set.data].text, sites));
        }
        for path in disabled(&self.chart, &view, &[]) {
            view.remove(&path);
        }
        Ok(view)
    }

    /// See [`super::Plan::reads_value`]. A value that is nowhere set counts as read where a template names the last part of its path.
    pub(super) fn reads_value(&self, path: &str) -> Option<bool> {
        let scans: Vec<Option<Scan<'_>>> = self.data.iter().map(|_| None).collect();
        let view = self.view(&scans).ok()?;
        let keys = Value::keys(path);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        if view.at(&keys).is_some() {
            return Some(true);
        }
        let is_packed = |chart: &&Chart| chart.key == keys[0] && matches!(chart.values, Some(Values::Packed(_)));
        if self.chart.dependencies.iter().any(|chart| is_packed(&chart)) {
            return None;
        }
        let last = keys.last().expect("a path has a part");
        let is_template = |path: &Path| path.components().any(|part| part.as_os_str() == "templates");
        let mut found = false;
        let searched = self.chart_at.files(self.chart_at.app(), ANY_DEPTH, &mut |path| {
            found = found || (is_template(path) && self.chart_at.read(path).is_ok_and(|text| has_word(&text, last)));
        });
        searched.is_ok().then_some(found)
    }

    /// See [`super::Plan::may_hold_more`].
    pub(super) fn may_hold_more(&self) -> bool {
        let is_data = |path: &Path| self.data.iter().any(|data| matches!(&data.source, Source::InPlace(own) if own == path));
        let is_remote = self.value_files.iter().any(|file| matches!(file, ValueFile::Remote(_)));
        let is_packed = |path: &Path| path.extension().is_some_and(|end| end == "tgz");
        let mut has_archive = false;
        let listed = self.chart_at.files(self.chart_at.app(), ANY_DEPTH, &mut |path| has_archive |= is_packed(path));
        is_remote || has_archive || listed.is_err() || any_placeholder(&self.chart_at, self.chart_at.app(), is_data)
    }

    /// The defaults of a chart over those of its dependencies.
    fn defaults(&self, chart: &Chart, scans: &[Option<Scan<'_>>]) -> Result<Value, RenderError> {
        let mut view = Value::default();
        for dependency in &chart.dependencies {
            view.merge(self.defaults(dependency, scans)?.below(&dependency.key));
        }
        match &chart.values {
            Some(Values::Data(data)) => view.merge(self.read(*data, scans)?),
            Some(Values::Packed(text)) => {
                // What cannot be read here, Helm will complain about.
                if let Ok(tree) = Tree::parse(text) {
                    view.merge(Value::read(&tree, &HashMap::new())?);
                }
            }
            None => {}
        }
        Ok(view)
    }

    fn read(&self, data: usize, scans: &[Option<Scan<'_>>]) -> Result<Value, RenderError> {
        let mut sites: HashMap<NodeId, Vec<Site>> = HashMap::new();
        if let Some(scan) = &scans[data] {
            for (index, placeholder) in scan.placeholders.iter().enumerate() {
                sites.entry(placeholder.scalar).or_default().push((data, index));
            }
            return Ok(Value::read(&scan.tree, &sites)?);
        }
        let data = &self.data[data];
        let tree = Tree::parse(&data.text).map_err(|source| RenderError::NotYaml { path: data.name.clone(), source })?;
        Ok(Value::read(&tree, &sites)?)
    }

    /// See [`super::Plan::run`].
    ///
    /// # Errors
    ///
    /// [`RenderError`].
    pub async fn run(
        &mut self,
        changed: &BTreeMap<usize, String>,
        targets: &Targets,
        tools: &Tools,
    ) -> Result<String, RenderError> {
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
            let (flag, value) = match changed.get(&set.data) {
                Some(value) if !value.starts_with('{') => ("--set-string", value),
                Some(value) => (set.flag, value),
                None => (set.flag, &self.data[set.data].text),
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
                ValueFile::Remote(url) => add("--values", one_field(url).into()),
                ValueFile::Local(data, path) => match changed.get(data) {
                    Some(text) => add("--values", self.workspace.write_extra(&format!("{data}.yaml"), text)?.into()),
                    None => add("--values", one_field(&path.to_string_lossy()).into()),
                },
            }
        }
        if let Some(data) = self.inline {
            let text = changed.get(&data).unwrap_or(&self.data[data].text);
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
        let recalled = key.and_then(|key| tools.memo.as_ref()?.get(&key));
        self.is_recalled = recalled.is_some();
        if let Some(text) = recalled {
            return Ok(text);
        }
        let in_place = changed.iter().filter_map(|(place, text)| match &self.data[*place].source {
            Source::InPlace(path) => Some((path, text)),
            _ => None,
        });
        let in_place: Vec<_> = in_place.collect();
        let is_copied = self.chart_at.root() != self.checkout.root();
        let root = if !is_copied && (in_place.is_empty() || self.checkout.overwrite(&in_place)?) {
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
        // Workers have no network.
        let is_remote = self.fetches || self.value_files.iter().any(|file| matches!(file, ValueFile::Remote(_)));
        let runner = if is_remote { &Runner::Process } else { &tools.templates };
        let output = runner.run(&child(tools, arguments, root.join(self.checkout.app()), &self.workspace.home()?)).await?;
        if !output.stderr.trim().is_empty() {
            tracing::debug!(stderr = %printable(output.stderr.trim()), "helm wrote to standard error");
        }
        let text = text(output.stdout)?;
        if let (Some(memo), Some(key)) = (&tools.memo, key) {
            memo.keep(key, &text);
        }
        Ok(text)
    }

    /// What the text is made from, if all of it is known.
    fn key(&self, arguments: &[OsString], changed: &BTreeMap<usize, String>, tools: &Tools) -> Option<[u8; 32]> {
        if !self.is_local || tools.memo.is_none() {
            return None;
        }
        let mut key = Key::new(&tools.helm, &self.checkout, self.workspace.path())?;
        key.add_words(arguments.iter().map(OsString::as_os_str));
        // A chart may draw a password: another application's is its own, whatever else it has in common.
        for own in [&self.application.name, &self.application.project, &self.application.repo_url] {
            key.add(own.as_bytes());
        }
        for (place, data) in self.data.iter().enumerate() {
            key.add(changed.get(&place).unwrap_or(&data.text).as_bytes());
        }
        Some(key.finish())
    }
}

/// Paths of the dependencies that are switched off: nothing of them is rendered, so nothing of them is asked for.
///
/// A `condition` counts from the chart that declares it, and globals reach every chart; `tags` are the root's. Follows Helm's
/// `ProcessDependencies`: the first condition that has a value decides, else any tag that is on, else any tag that is off.
fn disabled<'c>(chart: &'c Chart, root: &Value, path: &[&'c str]) -> Vec<Vec<&'c str>> {
    let mut found = Vec::new();
    for dependency in &chart.dependencies {
        let own = |keys: Vec<&str>| if keys[0] == "global" { root.flag(&keys) } else { root.flag(&[path, &keys].concat()) };
        let condition = dependency.conditions.iter().find_map(|condition| own(condition.split('.').collect()));
        let tags: Vec<bool> = dependency.tags.iter().filter_map(|tag| root.flag(&["tags", tag])).collect();
        let below = [path, &[dependency.key.as_str()]].concat();
        if condition.unwrap_or_else(|| tags.is_empty() || tags.contains(&true)) {
            found.extend(disabled(dependency, root, &below));
        } else {
            found.push(below);
        }
    }
    found
}

/// Does the schema of a chart's values, or of a dependency's, lead to an address that the operator permits? Others are refused.
fn fetches(chart: &Chart, tools: &Tools) -> Result<bool, RenderError> {
    let mut found = !chart.fetches.is_empty();
    for reference in &chart.fetches {
        let scheme = reference.split_once("://").map_or("", |(scheme, _)| scheme);
        let is_permitted = ["http", "https"].contains(&scheme) && tools.value_file_schemes.iter().any(|known| known == scheme);
        if !is_permitted {
            let what = format!("`values.schema.json` refers to `{}`, which is not permitted", printable(reference));
            let hint =
                "keep the schema in one file, with references such as `#/$defs/port`; or set `helm-skip-schema-validation`";
            return Err(RenderError::Invalid { what, hint: Some(hint.into()) });
        }
    }
    for dependency in &chart.dependencies {
        found |= fetches(dependency, tools)?;
    }
    Ok(found)
}

/// Helm in a home of its own, without plugins.
fn child(tools: &Tools, arguments: Vec<OsString>, directory: PathBuf, home: &Path) -> Child {
    let below = |name: &str| home.join(name).into_os_string();
    // A larger heap before the first collection saves a fifth of a small chart's time.
    let more = [
        ("GOGC", OsString::from("400")),
        ("HELM_CACHE_HOME", below("cache")),
        ("HELM_CONFIG_HOME", below("config")),
        ("HELM_DATA_HOME", below("data")),
        ("HELM_PLUGINS", below("no-plugins")),
    ];
    Child {
        program: tools.helm.clone(),
        arguments,
        directory,
        environment: environment(home, &more),
        deadline: tools.timeout,
        max_output: tools.max_output,
        border: None,
    }
}

/// Copies the chart into the workspace and lets Helm fetch what is declared there, as Argo CD does.
async fn build_dependencies(
    checkout: &Checkout,
    workspace: &mut Workspace,
    chart: &Chart,
    tools: &Tools,
) -> Result<(), RenderError> {
    workspace.copy(checkout, checkout.app())?;
    let directory = workspace.root().join(checkout.app());
    let home = workspace.home()?;
    tracing::info!(
        charts = chart.missing.iter().map(|chart| chart.name.as_str()).collect::<Vec<_>>().join(", "),
        "building dependencies"
    );
    let Chart { missing, declared, .. } = chart;
    // Helm builds all of them again, also those that are there.
    for chart in declared {
        let repository = chart.repository.as_str();
        let is_missing = missing.iter().any(|missing| missing.name == chart.name);
        if let Some(path) = repository.strip_prefix("file://") {
            if path.starts_with('/') {
                let what =
                    format!("dependency `{}`: `{}` leads outside the checkout", printable(&chart.name), printable(repository));
                return Err(RenderError::Invalid {
                    what,
                    hint: Some("write a path relative to the chart: `file://../lib`".into()),
                });
            }
            let found = checkout
                .find(checkout.app(), path)
                .map_err(|source| RenderError::File { what: format!("dependency `{}`", printable(&chart.name)), source })?;
            checkout.check_links(&found)?;
            workspace.copy(checkout, &found)?;
        } else if repository.starts_with("https://") || repository.starts_with("http://") {
            let name: String =
                sha2::Sha256::digest(repository.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            let arguments = ["repo", "add", &name, repository].map(OsString::from).into();
            child(tools, arguments, directory.clone(), &home).run().await?;
        } else if is_missing && !repository.starts_with("oci://") {
            let what = format!(
                "dependency `{}` is missing in `charts/`, and its repository `{}` is none",
                printable(&chart.name),
                printable(repository)
            );
            let hint = Some(
                "write `repository: https://…`, `oci://…` or `file://…` in Chart.yaml, or commit the chart below `charts/`"
                    .into(),
            );
            return Err(RenderError::Invalid { what, hint });
        }
    }
    let arguments = ["dependency", "build"].map(OsString::from).into();
    child(tools, arguments, directory, &home).run().await?;
    Ok(())
}

/// A path as one field: Helm reads `--values` as comma-separated values, so that a comma would name a second file.
fn one_field(path: &str) -> String {
    if path.contains([',', '"', '\n', '\r']) { format!("\"{}\"", path.replace('"', "\"\"")) } else { path.to_owned() }
}

/// Does a text hold a word, not as a part of another?
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part))
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
