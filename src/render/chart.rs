//! What is read of a Helm chart: its dependencies, and the default values of each, to know which image a placeholder means.
//!
//! Follows Helm's loader: a dependency is a directory or an archive below `charts/`; declared in `Chart.yaml` (or `requirements.yaml`
//! of an `apiVersion: v1` chart) it goes by its alias.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use serde::Deserialize;

use super::{Data, RenderError, Source, schema};
use crate::workspace::{Checkout, WorkspaceError, shown};

/// Dependencies of dependencies, at most this deep.
const MAX_DEPTH: usize = 10;

/// Charts in one tree.
const MAX_CHARTS: usize = 1000;

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
    /// Its place among the texts that are substituted.
    Data(usize),
    /// From an archive, which is only looked at.
    Packed(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ChartFile {
    name: String,
    dependencies: Vec<Declared>,
}

/// A dependency as `Chart.yaml` declares it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Declared {
    pub name: String,
    pub alias: Option<String>,
    pub repository: String,
    pub condition: Option<String>,
    pub tags: Vec<String>,
}

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

/// Reads a chart and all below it. Default values of unpacked charts are added to `data`.
///
/// # Errors
///
/// [`RenderError`] for files that cannot be read or are not what Helm expects.
pub fn read(checkout: &Checkout, dir: &Path, data: &mut Vec<Data>) -> Result<Chart, RenderError> {
    let mut reader = Reader { charts: 0, data };
    reader.chart(&Files::Directory(checkout), dir, String::new(), 0)
}

struct Reader<'a> {
    charts: usize,
    data: &'a mut Vec<Data>,
}

impl Reader<'_> {
    fn chart(&mut self, files: &Files<'_>, dir: &Path, key: String, depth: usize) -> Result<Chart, RenderError> {
        self.charts += 1;
        if self.charts > MAX_CHARTS || depth > MAX_DEPTH {
            let what = format!("`{}` has more than {MAX_CHARTS} dependencies, or deeper ones than {MAX_DEPTH}", shown(dir));
            return Err(RenderError::invalid(what));
        }
        let mut declared = chart_file(files, dir)?.dependencies;
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
                let known = self.data.iter().position(|data| data.source == source);
                Some(Values::Data(known.unwrap_or_else(|| {
                    self.data.push(Data { name: shown(&dir.join("values.yaml")), text, source });
                    self.data.len() - 1
                })))
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
        Ok(Chart { key, values, dependencies, declared, missing, fetches, ..Chart::default() })
    }
}

fn chart_file(files: &Files<'_>, dir: &Path) -> Result<ChartFile, RenderError> {
    let path = dir.join("Chart.yaml");
    files.read(&path)?.map_or_else(|| Ok(ChartFile::default()), |text| parse(&path, &text))
}

fn parse(path: &Path, text: &str) -> Result<ChartFile, RenderError> {
    serde_yaml::from_str(text)
        .map_err(|error| RenderError::invalid(format!("`{}` is not what Helm expects: {error}", shown(path))))
}

/// What is read of the charts in an archive.
const WANTED: [&str; 4] = ["Chart.yaml", "values.yaml", "requirements.yaml", "values.schema.json"];

/// The files of interest in an archive. What is no archive is left to Helm to complain about.
fn unpack(checkout: &Checkout, path: &Path) -> Result<BTreeMap<String, String>, RenderError> {
    let inside = checkout.find(Path::new(""), &path.to_string_lossy())?;
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
        let mut data = Vec::new();
        let chart = read(&checkout, Path::new(""), &mut data).expect("a chart");
        let keys: Vec<&str> = chart.dependencies.iter().map(|chart| chart.key.as_str()).collect();
        assert_eq!(keys, ["cache", "front", "back"]);
        assert!(matches!(&chart.dependencies[0].values, Some(Values::Packed(text)) if text == "c: 1\n"));
        let packed = &chart.dependencies[0].dependencies;
        assert_eq!(packed.iter().map(|chart| chart.key.as_str()).collect::<Vec<_>>(), ["deep", "sub"]);
        assert_eq!((packed[0].fetches.as_slice(), packed[1].fetches.len()), (&["http://x/y".to_owned()][..], 0));
        assert_eq!(chart.dependencies[1].conditions, ["front.enabled", "x.y"]);
        let missing: Vec<&str> = chart.missing.iter().map(|declared| declared.name.as_str()).collect();
        assert_eq!(missing, ["gone"]);
        let names: Vec<&str> = data.iter().map(|data| data.name.as_str()).collect();
        assert_eq!(names, ["values.yaml", "charts/web-dir/values.yaml"]);
    }

    #[test]
    fn a_broken_archive_is_left_to_helm() {
        let (dir, checkout) = fixture();
        fs::write(dir.path().join("charts/broken.tgz"), "no archive").expect("a file");
        assert!(read(&checkout, Path::new(""), &mut Vec::new()).is_ok());
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
        let error = read(&checkout, Path::new(""), &mut Vec::new()).expect_err("too deep");
        assert!(error.to_string().contains("deeper"), "{error}");
    }
}
