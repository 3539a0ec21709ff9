//! `plugin.yaml`, read as Argo CD's cmp-server reads it (`cmpserver/plugin/config.go`): keys in any case, unknown ones ignored, read once.
//!
//! What Pinion does not run is left out: the commands `init` and `generate` are its own business.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::proto::ParameterAnnouncement;

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plugin {
    /// The socket's name without `.sock`: `<name>-<version>`, or `<name>`.
    pub stem: String,
    pub discover: Discover,
    pub parameters: Vec<ParameterAnnouncement>,
    /// A command that prints more announcements.
    pub dynamic: Vec<String>,
    pub preserve_file_mode: bool,
    pub provide_git_creds: bool,
}

/// How a repository is recognised; off when nothing is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discover {
    pub file_name: Option<String>,
    pub glob: Option<String>,
    pub command: Vec<String>,
}

impl Discover {
    pub fn is_configured(&self) -> bool {
        self.file_name.is_some() || self.glob.is_some() || !self.command.is_empty()
    }
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("`{path}` cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`{path}`: {problem}")]
    Invalid { path: PathBuf, problem: String },
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    version: String,
    generate: Command,
    discover: RawDiscover,
    parameters: RawParameters,
    preservefilemode: bool,
    providegitcreds: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Command {
    command: Vec<String>,
    args: Vec<String>,
}

impl Command {
    fn words(self) -> Vec<String> {
        self.command.into_iter().chain(self.args).collect()
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawDiscover {
    filename: String,
    find: Find,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Find {
    glob: String,
    command: Vec<String>,
    args: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawParameters {
    #[serde(rename = "static")]
    fixed: Vec<Announcement>,
    dynamic: Command,
}

/// A parameter as `plugin.yaml` and a dynamic command announce it.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Announcement {
    name: String,
    title: String,
    tooltip: String,
    required: bool,
    itemtype: String,
    collectiontype: String,
    string: String,
    array: Vec<String>,
    map: std::collections::HashMap<String, String>,
}

impl From<Announcement> for ParameterAnnouncement {
    fn from(from: Announcement) -> Self {
        let Announcement { name, title, tooltip, required, itemtype, collectiontype, string, array, map } = from;
        Self { name, title, tooltip, required, item_type: itemtype, collection_type: collectiontype, string, array, map }
    }
}

impl Plugin {
    /// Reads `<dir>/plugin.yaml`.
    ///
    /// # Errors
    ///
    /// [`PluginError`]: the file is missing, is no such file, or its name makes a socket that Argo CD cannot call.
    pub fn load(dir: &Path) -> Result<Self, PluginError> {
        let path = dir.join("plugin.yaml");
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map_err(|problem| PluginError::Invalid { path, problem }),
            Err(source) => Err(PluginError::Read { path, source }),
        }
    }

    /// Reads the file's text.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value = crate::yaml::from_str(text).map_err(|error| error.to_string())?;
        let file: File = serde_json::from_value(folded(value, 0)).map_err(|error| error.to_string())?;
        let Spec { version, generate, discover, parameters, preservefilemode, providegitcreds } = file.spec;
        if file.metadata.name.is_empty() {
            return Err("invalid plugin configuration file. metadata.name should be non-empty.".into());
        }
        if file.kind != "ConfigManagementPlugin" {
            return Err(format!("invalid plugin configuration file. kind should be ConfigManagementPlugin, found {}", file.kind));
        }
        if generate.command.is_empty() {
            return Err("invalid plugin configuration file. spec.generate command should be non-empty".into());
        }
        let stem = if version.is_empty() { file.metadata.name } else { format!("{}-{version}", file.metadata.name) };
        // Argo CD's client sends the escaped path of the socket as the authority, which HTTP libraries of Rust refuse unless what stands
        // before an `@` can be read as user information.
        if !stem.contains('@') {
            return Err(format!("the plugin's name `{stem}` has no `@`, so that Argo CD could not call it: name it `{stem}@v1`"));
        }
        if stem.contains('/') {
            return Err(format!("the plugin's name `{stem}` holds a `/`"));
        }
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let RawDiscover { filename, find: Find { glob, command, args } } = discover;
        Ok(Self {
            stem,
            discover: Discover { file_name: some(filename), glob: some(glob), command: Command { command, args }.words() },
            parameters: parameters.fixed.into_iter().map(ParameterAnnouncement::from).collect(),
            dynamic: parameters.dynamic.words(),
            preserve_file_mode: preservefilemode,
            provide_git_creds: providegitcreds,
        })
    }
}

/// Reads a dynamic command's announcements: a JSON array.
///
/// # Errors
///
/// When it is something else.
pub fn announcements(json: &[u8]) -> Result<Vec<ParameterAnnouncement>, serde_json::Error> {
    let value: Value = serde_json::from_slice(json)?;
    let all: Option<Vec<Announcement>> = serde_json::from_value(folded(value, 0))?;
    Ok(all.unwrap_or_default().into_iter().map(ParameterAnnouncement::from).collect())
}

/// Go's decoder matches keys in any case; `null` is what is not given. Maps of a parameter keep their keys.
fn folded(value: Value, depth: usize) -> Value {
    match value {
        Value::Object(map) => {
            let entries = map.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| {
                let lower = key.to_ascii_lowercase();
                let value = if lower == "map" || depth > 32 { value } else { folded(value, depth + 1) };
                (lower, value)
            });
            Value::Object(entries.collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(|item| folded(item, depth + 1)).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_file_is_read() {
        let plugin = Plugin::parse(include_str!("../../plugin.yaml")).expect("a plugin");
        assert_eq!(plugin.stem, "pinion@v1");
        assert!(!plugin.discover.is_configured());
        assert_eq!(plugin.parameters.len(), crate::parameters::table::TABLE.len());
    }

    #[test]
    fn keys_match_in_any_case_and_unknown_ones_are_ignored() {
        let text = "KIND: ConfigManagementPlugin\nmetadata: {NAME: x}\nspec:\n  Version: v@1\n  lockRepo: true\n  generate: {command: [a]}\n  discover: {fileName: '*.yaml', find: {glob: '**/b', command: null}}\n  PreserveFileMode: true\n  parameters:\n    static: [{name: n, Map: {Key: v}}]\n    dynamic: {command: [sh, -c], args: [x]}\n";
        let plugin = Plugin::parse(text).expect("a plugin");
        assert_eq!((plugin.stem.as_str(), plugin.preserve_file_mode), ("x-v@1", true));
        assert_eq!(plugin.discover.file_name.as_deref(), Some("*.yaml"));
        assert_eq!(plugin.parameters[0].map["Key"], "v");
        assert_eq!(plugin.dynamic, ["sh", "-c", "x"]);
    }

    #[test]
    fn a_file_that_argo_cd_refuses_is_refused() {
        let whole = "kind: ConfigManagementPlugin\nmetadata: {name: x@v1}\nspec: {generate: {command: [a]}}\n";
        assert!(Plugin::parse(whole).is_ok());
        for (from, to) in
            [("x@v1", "''"), ("kind: Config", "kind: Other"), ("[a]", "[]"), ("x@v1", "pinion"), ("x@v1", "../x@v1")]
        {
            assert!(Plugin::parse(&whole.replace(from, to)).is_err(), "{to}");
        }
    }
}
