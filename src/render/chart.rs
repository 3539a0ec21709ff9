//! What is read of a Helm chart: its dependencies, and the default values of each, to know which image a placeholder means.
//!
//! Follows Helm's loader: a dependency is a directory or an archive below `charts/`; declared in `Chart.yaml` (or `requirements.yaml`
//! of an `apiVersion: v1` chart) it goes by its alias. What is read here serves the search for images and good messages. It keeps nobody
//! from anything: Helm reads the same files in its own way, and its sandbox holds whatever they say.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use granit_parser::ScalarStyle;
use serde::Deserialize;
use serde_json::Value;

use super::{Inputs, RenderError, Source, schema};
use crate::placeholder::scans::InputId;
use crate::workspace::{Checkout, WorkspaceError, shown};
use crate::yaml::{Kind, NodeId, Tree};

/// Dependencies of dependencies, at most this deep.
const MAX_DEPTH: usize = 10;

/// Charts in one tree.
const MAX_CHARTS: usize = 1000;

/// As deep as a `Chart.yaml` or lock file goes.
const MAX_LEVELS: usize = 100;

/// Values in one `Chart.yaml` or lock file, aliases expanded.
const MAX_NODES: usize = 100_000;

/// Longest archive of a packed dependency, unpacked, in bytes.
const MAX_UNPACKED: u64 = 256 * 1024 * 1024;

/// All files of interest in an archive, in bytes.
const MAX_KEPT: u64 = 64 * 1024 * 1024;

/// Longest file of interest in an archive, in bytes.
const MAX_ENTRY: u64 = 8 * 1024 * 1024;

/// A chart with its dependencies.
#[derive(Debug, Default)]
pub struct Chart {
    /// The name or alias below which the parent's values address it; empty for the root.
    pub key: String,
    pub values: Option<Values>,
    pub dependencies: Vec<Chart>,
    /// All that are declared.
    pub declared: Vec<Declared>,
    /// Is it an `apiVersion: v1` chart, with `requirements.yaml` and `requirements.lock`?
    pub is_old: bool,
    /// Declared, but not below `charts/`.
    pub missing: Vec<Declared>,
    /// `condition` paths of its declaration, in order.
    pub conditions: Vec<String>,
    /// `tags` of its declaration.
    pub tags: Vec<String>,
    /// What its schema of values would have fetched.
    pub fetches: Vec<String>,
}

/// A chart's `values.yaml`.
#[derive(Debug)]
pub enum Values {
    /// A text that is substituted.
    Input(InputId),
    /// From an archive, which is only looked at.
    Packed(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ChartFile {
    #[serde(rename = "apiVersion")]
    api_version: String,
    name: String,
    dependencies: Vec<Declared>,
}

/// A dependency as `Chart.yaml` declares it: the fields of Helm's type, in its order.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Declared {
    pub name: String,
    pub version: String,
    pub repository: String,
    pub condition: Option<String>,
    pub tags: Vec<String>,
    pub enabled: bool,
    pub import_values: Vec<Value>,
    pub alias: Option<String>,
}

/// Fields of the files that are read here, as Helm spells them.
const FIELDS: [&str; 12] = [
    "alias",
    "apiVersion",
    "condition",
    "dependencies",
    "digest",
    "enabled",
    "generated",
    "import-values",
    "name",
    "repository",
    "tags",
    "version",
];

/// Reads a chart's files from a directory of the checkout or from an archive.
enum Files<'a> {
    Directory(&'a Checkout),
    Archive(&'a BTreeMap<String, String>),
}

impl Files<'_> {
    fn read(&self, path: &Path) -> Result<Option<String>, WorkspaceError> {
        match self {
            Self::Directory(checkout) => checkout.read_if_present(path),
            Self::Archive(files) => Ok(files.get(path.to_string_lossy().as_ref()).cloned()),
        }
    }

    /// Names below a directory, sorted; those that Helm skips (`.x`, `_x`) left out.
    fn list(&self, dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = match self {
            Self::Directory(checkout) => std::fs::read_dir(checkout.root().join(dir))
                .map(|entries| entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
                .unwrap_or_default(),
            Self::Archive(files) => {
                let prefix = format!("{}/", dir.display());
                let below = files.keys().filter_map(|path| path.strip_prefix(&prefix)?.split('/').next().map(str::to_owned));
                below.collect()
            }
        };
        names.sort();
        names.dedup();
        names.retain(|name| !name.starts_with(['.', '_']));
        names
    }
}

/// Reads a chart and all below it. Default values of unpacked charts are added to `inputs`.
///
/// # Errors
///
/// [`RenderError`] for files that cannot be read or are not what Helm expects.
pub fn read(checkout: &Checkout, dir: &Path, inputs: &mut Inputs) -> Result<Chart, RenderError> {
    let mut reader = Reader { charts: 0, inputs };
    reader.chart(&Files::Directory(checkout), dir, String::new(), 0)
}

struct Reader<'a> {
    charts: usize,
    inputs: &'a mut Inputs,
}

impl Reader<'_> {
    fn chart(&mut self, files: &Files<'_>, dir: &Path, key: String, depth: usize) -> Result<Chart, RenderError> {
        self.charts += 1;
        if self.charts > MAX_CHARTS || depth > MAX_DEPTH {
            let what = format!("`{}` has more than {MAX_CHARTS} dependencies, or deeper ones than {MAX_DEPTH}", shown(dir));
            return Err(RenderError::invalid(what));
        }
        let ChartFile { api_version, dependencies: mut declared, .. } = chart_file(files, dir)?;
        if let Some(text) = files.read(&dir.join("requirements.yaml"))? {
            declared.extend(parse(&dir.join("requirements.yaml"), &text)?.dependencies);
        }
        let schema = files.read(&dir.join("values.schema.json"))?;
        let fetches = schema.as_deref().map(schema::foreign).unwrap_or_default();
        let values = match (files, files.read(&dir.join("values.yaml"))?) {
            (_, None) => None,
            (Files::Archive(_), Some(text)) => Some(Values::Packed(text)),
            (Files::Directory(_), Some(text)) => {
                let source = Source::InPlace(dir.join("values.yaml"));
                // A chart that is used under two aliases has its values once.
                let known = self.inputs.with_source(&source);
                let add = || self.inputs.add(shown(&dir.join("values.yaml")), text, source);
                Some(Values::Input(known.unwrap_or_else(add)))
            }
        };
        let mut found = Vec::new();
        for name in files.list(&dir.join("charts")) {
            let path = dir.join("charts").join(&name);
            let archive = match files {
                Files::Directory(checkout) if name.ends_with(".tgz") => Some(unpack(checkout, &path)?),
                _ => None,
            };
            let (files, path) = match &archive {
                Some(archive) => {
                    let root = archive.keys().next().and_then(|path| path.split('/').next()).unwrap_or_default();
                    (&Files::Archive(archive), PathBuf::from(root))
                }
                None => (files, path),
            };
            if files.read(&path.join("Chart.yaml"))?.is_none() {
                continue;
            }
            let own = chart_file(files, &path)?.name;
            let uses: Vec<&Declared> = declared.iter().filter(|declared| declared.name == own).collect();
            if uses.is_empty() {
                found.push((own.clone(), self.chart(files, &path, own, depth + 1)?));
                continue;
            }
            for declared in uses {
                let key = declared.alias.clone().filter(|alias| !alias.is_empty()).unwrap_or_else(|| own.clone());
                let mut chart = self.chart(files, &path, key, depth + 1)?;
                let conditions = declared.condition.iter().flat_map(|text| text.split(','));
                chart.conditions = conditions.map(|path| path.trim().to_owned()).collect();
                chart.tags.clone_from(&declared.tags);
                found.push((own.clone(), chart));
            }
        }
        let is_missing = |declared: &&Declared| found.iter().all(|(name, _)| *name != declared.name);
        let missing = declared.iter().filter(is_missing).cloned().collect();
        let dependencies = found.into_iter().map(|(_, chart)| chart).collect();
        let is_old = api_version != "v2";
        Ok(Chart { key, values, dependencies, declared, is_old, missing, fetches, ..Chart::default() })
    }
}

fn chart_file(files: &Files<'_>, dir: &Path) -> Result<ChartFile, RenderError> {
    let path = dir.join("Chart.yaml");
    files.read(&path)?.map_or_else(|| Ok(ChartFile::default()), |text| parse(&path, &text))
}

/// Checks a `Chart.yaml` by itself.
///
/// # Errors
///
/// When Helm would not read it.
pub fn check_chart(path: &Path, text: &str) -> Result<(), RenderError> {
    parse(path, text).map(drop)
}

fn parse(path: &Path, text: &str) -> Result<ChartFile, RenderError> {
    let wrong =
        |error: &dyn std::fmt::Display| RenderError::invalid(format!("`{}` is not what Helm expects: {error}", shown(path)));
    serde_json::from_value(folded(text).map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))
}

/// A file's first document as Go's libraries read it into a type: merge keys are applied, the last of equal keys counts, and a field is
/// found in any case, its own spelling last. What is `null` is not given.
///
/// # Errors
///
/// Why it is not YAML.
pub fn folded(text: &str) -> Result<Value, String> {
    let tree = Tree::parse(text).map_err(|error| error.to_string())?;
    let mut left = MAX_NODES;
    let value = tree.roots.first().map_or(Ok(Value::Null), |root| json(&tree, *root, MAX_LEVELS, &mut left))?;
    let fold = |value: Value| match value {
        Value::Object(map) => {
            let ordered: BTreeMap<String, Value> = map.into_iter().collect();
            let mut folded = serde_json::Map::new();
            for (key, value) in ordered.into_iter().filter(|(_, value)| !value.is_null()) {
                let field = FIELDS.iter().find(|field| field.eq_ignore_ascii_case(&key)).map_or(key.as_str(), |field| *field);
                folded.insert(field.to_owned(), value);
            }
            Value::Object(folded)
        }
        other => other,
    };
    let mut value = match value {
        Value::Null => Value::Object(serde_json::Map::new()),
        Value::Array(items) => Value::Array(items.into_iter().map(fold).collect()),
        value => fold(value),
    };
    if let Some(Value::Array(items)) = value.get_mut("dependencies") {
        *items = std::mem::take(items).into_iter().map(fold).filter(|item| !item.is_null()).collect();
    }
    Ok(value)
}

fn json(tree: &Tree<'_>, id: NodeId, depth: usize, left: &mut usize) -> Result<Value, String> {
    let too_much = || "it holds too much, or goes too deep".to_owned();
    let depth = depth.checked_sub(1).ok_or_else(too_much)?;
    *left = left.checked_sub(1).ok_or_else(too_much)?;
    let id = tree.follow(id);
    Ok(match &tree.node(id).kind {
        Kind::Scalar { value, style: ScalarStyle::Plain } => serde_yaml::from_str(value)
            .ok()
            .filter(|value: &Value| !(value.is_object() || value.is_array()))
            .unwrap_or_else(|| Value::String(value.to_string())),
        Kind::Scalar { value, .. } => Value::String(value.to_string()),
        Kind::Sequence(items) => Value::Array(items.iter().map(|item| json(tree, *item, depth, left)).collect::<Result<_, _>>()?),
        Kind::Mapping(entries) => {
            let mut map = serde_json::Map::new();
            for (_, merged) in entries.iter().filter(|(key, _)| tree.is_merge_key(*key)) {
                let sources = match &tree.node(tree.follow(*merged)).kind {
                    Kind::Sequence(items) => items.clone(),
                    _ => vec![*merged],
                };
                for source in sources {
                    if let Value::Object(inherited) = json(tree, source, depth, left)? {
                        for (key, value) in inherited {
                            map.entry(key).or_insert(value);
                        }
                    }
                }
            }
            for (key, value) in entries.iter().filter(|(key, _)| !tree.is_merge_key(*key)) {
                if let Some(name) = tree.text(*key) {
                    map.insert(name.to_owned(), json(tree, *value, depth, left)?);
                }
            }
            Value::Object(map)
        }
        Kind::Alias(_) => Value::Null,
    })
}

/// The name of the chart in an archive, if it is one.
///
/// # Errors
///
/// When the archive leads out of the checkout.
pub fn name_of_archive(checkout: &Checkout, path: &Path) -> Result<Option<String>, RenderError> {
    let files = unpack(checkout, path)?;
    let root = files.keys().next().and_then(|path| path.split('/').next()).unwrap_or_default().to_owned();
    let file = files.get(&format!("{root}/Chart.yaml"));
    Ok(file.and_then(|text| parse(path, text).ok()).map(|file| file.name))
}

/// What is read of the charts in an archive.
const WANTED: [&str; 4] = ["Chart.yaml", "values.yaml", "requirements.yaml", "values.schema.json"];

/// The files of interest in an archive. What is no archive is left to Helm to complain about.
fn unpack(checkout: &Checkout, path: &Path) -> Result<BTreeMap<String, String>, RenderError> {
    let inside = checkout.resolve_path(Path::new(""), &path.to_string_lossy())?;
    let mut files = BTreeMap::new();
    if let Ok(file) = std::fs::File::open(checkout.root().join(inside)) {
        let mut room = Room { unpacked: MAX_UNPACKED, kept: MAX_KEPT };
        read_archive(&mut GzDecoder::new(file).take(MAX_UNPACKED), "", 0, &mut room, &mut files);
    }
    Ok(files)
}

/// What may be read of an archive, those inside it included, in bytes.
struct Room {
    unpacked: u64,
    kept: u64,
}

/// Reads an archive; one inside stands for the directory that it holds.
fn read_archive(archive: &mut dyn Read, above: &str, depth: usize, room: &mut Room, files: &mut BTreeMap<String, String>) {
    let mut archive = tar::Archive::new(archive);
    let Ok(entries) = archive.entries() else { return };
    for entry in entries {
        let Ok(mut entry) = entry else { break };
        let Some(left) = room.unpacked.checked_sub(entry.size()) else { break };
        room.unpacked = left;
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        let (dir, file) = name.rsplit_once('/').unwrap_or(("", &name));
        if !entry.header().entry_type().is_file() || dir.split('/').any(|part| part == "templates") {
            continue;
        }
        if file.ends_with(".tgz") && dir.ends_with("charts") && depth < MAX_DEPTH {
            read_archive(&mut GzDecoder::new(&mut entry).take(MAX_UNPACKED), &format!("{above}{dir}/"), depth + 1, room, files);
        } else if WANTED.contains(&file) {
            let mut text = String::new();
            let is_read = entry.take(MAX_ENTRY).read_to_string(&mut text).is_ok();
            let Some(left) = room.kept.checked_sub(text.len() as u64) else { break };
            room.kept = left;
            if is_read {
                files.insert(format!("{above}{name}"), text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn append(builder: &mut tar::Builder<impl std::io::Write>, path: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content).expect("an entry");
    }

    fn packed(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        entries.iter().for_each(|(path, content)| append(&mut builder, path, content));
        builder.into_inner().and_then(flate2::write::GzEncoder::finish).expect("an archive")
    }

    fn fixture() -> (tempfile::TempDir, Checkout) {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).and_then(|()| fs::write(path, text)).expect("a file");
        };
        write(
            "Chart.yaml",
            "apiVersion: v2\nname: top\ndependencies:\n- {name: web, alias: front, condition: 'front.enabled, x.y'}\n- {name: web, alias: back}\n- {name: gone, repository: 'file://../gone'}\n",
        );
        write("values.yaml", "a: 1\n");
        write("charts/web-dir/Chart.yaml", "name: web\n");
        write("charts/web-dir/values.yaml", "b: 1\n");
        write("charts/_skipped/Chart.yaml", "name: skipped\n");
        write("charts/README.md", "no chart");
        let gz = flate2::write::GzEncoder::new(
            fs::File::create(dir.path().join("charts/cache-1.tgz")).expect("a file"),
            flate2::Compression::fast(),
        );
        let mut builder = tar::Builder::new(gz);
        let inner = packed(&[("deep/Chart.yaml", b"name: deep\n"), ("deep/values.schema.json", br#"{"$ref": "http://x/y"}"#)]);
        for (path, text) in [
            ("cache/Chart.yaml", &b"name: cache\n"[..]),
            ("cache/values.yaml", b"c: 1\n"),
            ("cache/charts/sub/Chart.yaml", b"name: sub\n"),
            ("cache/charts/deep-1.tgz", &inner),
        ] {
            append(&mut builder, path, text);
        }
        builder.into_inner().and_then(flate2::write::GzEncoder::finish).expect("an archive");
        let checkout = Checkout::open(dir.path(), Some("")).expect("a checkout");
        (dir, checkout)
    }

    #[test]
    fn dependencies_are_found_under_their_aliases() {
        let (_dir, checkout) = fixture();
        let mut inputs = Inputs::default();
        let chart = read(&checkout, Path::new(""), &mut inputs).expect("a chart");
        let keys: Vec<&str> = chart.dependencies.iter().map(|chart| chart.key.as_str()).collect();
        assert_eq!(keys, ["cache", "front", "back"]);
        assert!(matches!(&chart.dependencies[0].values, Some(Values::Packed(text)) if text == "c: 1\n"));
        let packed = &chart.dependencies[0].dependencies;
        assert_eq!(packed.iter().map(|chart| chart.key.as_str()).collect::<Vec<_>>(), ["deep", "sub"]);
        assert_eq!((packed[0].fetches.as_slice(), packed[1].fetches.len()), (&["http://x/y".to_owned()][..], 0));
        assert_eq!(chart.dependencies[1].conditions, ["front.enabled", "x.y"]);
        let missing: Vec<&str> = chart.missing.iter().map(|declared| declared.name.as_str()).collect();
        assert_eq!(missing, ["gone"]);
        let names: Vec<&str> = inputs.iter().map(|(_, input)| input.name.as_str()).collect();
        assert_eq!(names, ["values.yaml", "charts/web-dir/values.yaml"]);
    }

    /// Go takes a field in any case, and applies merge keys; so does Helm.
    #[test]
    fn fields_are_found_as_go_finds_them() {
        let repository = |text: &str| {
            let file: ChartFile = serde_json::from_value(folded(text).expect("YAML")).expect("a chart");
            file.dependencies[0].repository.clone()
        };
        for text in [
            "dependencies: [{name: a, Repository: 'file:///x'}]\n",
            "Dependencies: [{name: a, REPOSITORY: 'file:///x'}]\n",
            "base: &b {repository: 'file:///x'}\ndependencies: [{<<: *b, name: a}]\n",
            "dependencies: [{name: a, repository: 'file://../y', repository: 'file:///x'}]\n",
            "dependencies: [{name: a, repository: 'file:///x', Repository: 'file://../y'}]\n",
            "dependencies: [{name: a, repository: null, Repository: 'file:///x'}]\n",
        ] {
            assert_eq!(repository(text), "file:///x", "{text}");
        }
        assert_eq!(folded("").expect("nothing"), serde_json::json!({}));
        let deep = format!("a: {}\n", "[".repeat(200) + &"]".repeat(200));
        assert!(folded(&deep).is_err() && folded("a: [").is_err());
    }

    #[test]
    fn a_broken_archive_is_left_to_helm() {
        let (dir, checkout) = fixture();
        fs::write(dir.path().join("charts/broken.tgz"), "no archive").expect("a file");
        assert!(read(&checkout, Path::new(""), &mut Inputs::default()).is_ok());
    }

    #[test]
    fn depth_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut path = dir.path().to_owned();
        for _ in 0..=MAX_DEPTH + 1 {
            fs::create_dir_all(&path).and_then(|()| fs::write(path.join("Chart.yaml"), "name: x\n")).expect("a chart");
            path = path.join("charts/x");
        }
        let checkout = Checkout::open(dir.path(), Some("")).expect("a checkout");
        let error = read(&checkout, Path::new(""), &mut Inputs::default()).expect_err("too deep");
        assert!(error.to_string().contains("deeper"), "{error}");
    }
}
