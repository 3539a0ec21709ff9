//! What of a chart's values Helm will merge, as far as it matters to placeholders and rules: which image is meant, what is overridden, what
//! is read.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::reads::Reads;
use super::{Plan, ValueFile};
use crate::image::Repository;
use crate::placeholder::image::ImageNotFound;
use crate::placeholder::scans::{InputId, PlaceholderId, Scans};
use crate::render::chart::{Chart, Values};
use crate::render::{RenderError, Source, any_placeholder};
use crate::values::Value;
use crate::workspace::ANY_DEPTH;
use crate::yaml::{NodeId, Tree};

impl Plan {
    /// See [`super::Plan::images`].
    ///
    /// # Errors
    ///
    /// When the values cannot be merged.
    pub fn images(&self, scans: &Scans<'_>) -> Result<BTreeMap<PlaceholderId, Result<Repository, ImageNotFound>>, RenderError> {
        if scans.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut images = self.view(scans)?.images();
        // It may stand in what is missing.
        images.retain(|_, image| image.is_ok() || !self.is_partial);
        Ok(images)
    }

    /// What rules will set: placeholders there are overridden.
    pub(in crate::render) fn set_targets(&mut self, targets: Vec<(String, String)>) {
        self.targets = targets;
    }

    /// Is a path below a list that only the chart's own defaults have? Helm would put a list of its own in that place.
    pub(in crate::render) fn replaces_list(&self, path: &str) -> bool {
        let scans = Scans::default();
        let (Ok(given), Ok(defaults)) = (self.given(&scans), self.defaults(&self.chart, &scans)) else { return false };
        let keys = Value::keys(path);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        (1..keys.len()).any(|count| {
            let is_list = |view: &Value| matches!(view.at(&keys[..count]), Some(Value::List(_)));
            is_list(&defaults) && !is_list(&given)
        })
    }

    /// The values that Helm will merge, without those of dependencies that are switched off.
    fn view(&self, scans: &Scans<'_>) -> Result<Value, RenderError> {
        let mut view = self.defaults(&self.chart, scans)?;
        view.merge(self.given(scans)?);
        // An item of a list leaves the others.
        for (name, text) in self.targets.iter().filter(|(name, _)| !name.contains('[')) {
            view.merge(Value::set(name, text, Vec::new()));
        }
        for (name, _) in self.set_files.iter().filter(|(name, _)| !name.contains('[')) {
            view.merge(Value::set(name, "", Vec::new()));
        }
        for path in disabled(&self.chart, &view, &[]) {
            view.remove(&path);
        }
        Ok(view)
    }

    /// The values that the application gives beside the chart's own.
    fn given(&self, scans: &Scans<'_>) -> Result<Value, RenderError> {
        let mut view = Value::Map(BTreeMap::new());
        for file in &self.value_files {
            let (ValueFile::Local(input, _) | ValueFile::Fetched(input)) = file;
            view.merge(self.read(*input, scans)?);
        }
        if let Some(input) = self.inline {
            view.merge(self.read(input, scans)?);
        }
        for set in &self.sets {
            let sites = scans.get(set.input).into_iter().flat_map(|scan| scan.placeholders_of(set.input)).map(|(id, _)| id);
            view.merge(Value::set(&set.name, &self.inputs[set.input].text, sites.collect()));
        }
        Ok(view)
    }

    /// See [`super::Plan::reads_value`]. A value that is nowhere set counts as read where a template may name its path; a mapping or list
    /// is not read as a text, and what is a text has no fields.
    pub(in crate::render) fn reads_value(&self, path: &str) -> Option<bool> {
        let scans = Scans::default();
        let view = self.view(&scans).ok()?;
        let keys = Value::keys(path);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        match view.at(&keys) {
            Some(Value::Scalar { .. } | Value::Null) => return Some(true),
            Some(Value::Map(_) | Value::List(_)) => return Some(false),
            None => {}
        }
        let is_below_text = (1..keys.len()).any(|count| matches!(view.at(&keys[..count]), Some(Value::Scalar { .. })));
        if is_below_text {
            return Some(false);
        }
        if self.is_partial || keys[0] == "global" {
            return None;
        }
        let mut reads = Reads::default();
        let is_template = |path: &Path| path.components().any(|part| part.as_os_str() == "templates");
        let add = &mut |path: &Path| {
            if is_template(path)
                && let Ok(text) = self.chart_at.read(path)
            {
                reads.add(&text);
            }
        };
        self.chart_at.files(self.chart_at.app(), ANY_DEPTH, add).ok()?;
        // Below a dependency's name the path is one of its own values.
        let mut chart = Some(&self.chart);
        let mut is_read = false;
        for from in 0..keys.len() {
            let Some(here) = chart else { break };
            is_read |= reads.may_read(&keys[from..]);
            chart = here.dependencies.iter().find(|dependency| dependency.key == keys[from]);
        }
        // A packed chart may be a library, which reads the values of those who use it.
        let has_packed = self.chart.dependencies.iter().any(|chart| matches!(chart.values, None | Some(Values::Packed(_))));
        (is_read || !has_packed).then_some(is_read)
    }

    /// See [`super::Plan::may_hold_more`].
    pub(in crate::render) fn may_hold_more(&self) -> bool {
        let is_data =
            |path: &Path| self.inputs.iter().any(|(_, input)| matches!(&input.source, Source::InPlace(own) if own == path));
        let is_packed = |path: &Path| path.extension().is_some_and(|end| end == "tgz");
        let mut has_archive = false;
        let listed = self.chart_at.files(self.chart_at.app(), ANY_DEPTH, &mut |path| has_archive |= is_packed(path));
        self.is_partial || has_archive || listed.is_err() || any_placeholder(&self.chart_at, self.chart_at.app(), is_data)
    }

    /// The defaults of a chart over those of its dependencies.
    fn defaults(&self, chart: &Chart, scans: &Scans<'_>) -> Result<Value, RenderError> {
        let mut view = Value::default();
        for dependency in &chart.dependencies {
            view.merge(self.defaults(dependency, scans)?.nested(&dependency.key));
        }
        match &chart.values {
            Some(Values::Input(input)) => view.merge(self.read(*input, scans)?),
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

    fn read(&self, input: InputId, scans: &Scans<'_>) -> Result<Value, RenderError> {
        let mut sites: HashMap<NodeId, Vec<PlaceholderId>> = HashMap::new();
        if let Some(scan) = scans.get(input) {
            for (id, placeholder) in scan.placeholders_of(input) {
                sites.entry(placeholder.scalar).or_default().push(id);
            }
            return Ok(Value::read(&scan.tree, &sites)?);
        }
        let input = &self.inputs[input];
        let tree = Tree::parse(&input.text).map_err(|source| RenderError::NotYaml { path: input.name.clone(), source })?;
        Ok(Value::read(&tree, &sites)?)
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
