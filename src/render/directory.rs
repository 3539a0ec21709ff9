//! A directory of manifests, as Argo CD's `findManifests` reads it (`reposerver/repository/repository.go`), without Jsonnet.
//!
//! Files are taken in lexical order of their paths. One that cannot be read as Kubernetes objects is skipped, unless it holds
//! `apiVersion:`, `kind:` and `metadata:`: then it was meant. Texts are passed on as they are, each with its own `---`.

use std::io::Read;
use std::path::Path;

use globset::GlobMatcher;

use super::{Inputs, RenderError, Source, Tools, glob};
use crate::application::Application;
use crate::manifest;
use crate::placeholder::scans::Substituted;
use crate::workspace::{ANY_DEPTH, Checkout, WorkspaceError, shown};
use crate::yaml::Tree;

/// A file with this text is skipped, as Argo CD documents.
const SKIP: &str = "+argocd:skip-file-rendering";

/// A directory's manifests, ready to be put together.
#[derive(Debug)]
pub struct Plan {
    pub(super) inputs: Inputs,
    /// Files that are no manifests, and why.
    skipped: Vec<String>,
}

impl Plan {
    /// Finds and reads the files.
    ///
    /// # Errors
    ///
    /// [`RenderError`], for bad patterns, links that lead out of the checkout, a manifest that is not one, or when all together are too
    /// long.
    pub fn prepare(checkout: &Checkout, application: &Application, tools: &Tools) -> Result<Self, RenderError> {
        let options = &application.parameters.directory;
        let include = options.include.as_deref().map(|text| matcher("directory-include", text)).transpose()?;
        let exclude = options.exclude.as_deref().map(|text| matcher("directory-exclude", text)).transpose()?;
        let mut files = Vec::new();
        let mut jsonnet = None;
        let depth = if options.recurse { ANY_DEPTH } else { 0 };
        checkout.files(checkout.app(), depth, &mut |path| {
            let relative = path.strip_prefix(checkout.app()).unwrap_or(path);
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_manifest = ["yaml", "yml", "json"].iter().any(|end| path.extension().is_some_and(|own| own == *end));
            let is_ours = name.starts_with(".pinion.") || name.starts_with(".pinion-");
            let excluded = exclude.as_ref().is_some_and(|pattern| pattern.is_match(relative));
            let included = include.as_ref().is_none_or(|pattern| pattern.is_match(relative));
            // Argo CD's walk follows links to files alone.
            let is_linked = path
                .ancestors()
                .skip(1)
                .take_while(|above| *above != checkout.app())
                .any(|above| checkout.root().join(above).is_symlink());
            if is_ours || excluded || !included || is_linked {
                return;
            }
            if is_manifest {
                files.push(path.to_owned());
            } else if path.extension().is_some_and(|own| own == "jsonnet") {
                jsonnet.get_or_insert_with(|| path.to_owned());
            }
        })?;
        if let Some(path) = jsonnet {
            let hint = Some("Argo CD would prune what is not rendered; leave it out with `directory-exclude`".to_owned());
            return Err(RenderError::Invalid { what: format!("`{}` is Jsonnet, which is not rendered", shown(&path)), hint });
        }
        files.sort();
        let mut room = tools.max_directory_bytes;
        let (mut inputs, mut skipped) = (Inputs::default(), Vec::new());
        for path in files {
            let bytes = read(checkout, &path, room)?;
            room -= bytes.len() as u64;
            let name = shown(&path);
            let (text, problem) = match decode(&bytes) {
                Some(text) => {
                    let is_json = path.extension().is_some_and(|end| end == "json");
                    let problem = if is_json { check_json(&text) } else { check(&text) }.err();
                    (text, problem)
                }
                None => (String::from_utf8_lossy(&bytes).into_owned(), Some("it is no UTF-8 text".to_owned())),
            };
            if text.contains(SKIP) {
                continue;
            }
            match problem {
                None => {
                    inputs.add(name, text, Source::Named);
                }
                Some(reason) if is_meant(&path, &text) => {
                    return Err(RenderError::invalid(format!("`{name}` is not a manifest: {reason}")));
                }
                Some(reason) => {
                    tracing::debug!(file = %name, %reason, "not a manifest, skipped");
                    skipped.push(format!("`{name}` is no manifest: {reason}"));
                }
            }
        }
        Ok(Self { inputs, skipped })
    }

    /// Files that are no manifests, and why.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// Puts the manifests together.
    pub fn run(&self, changed: &Substituted) -> String {
        let mut manifests = String::new();
        for text in self.inputs.with(changed) {
            if !manifests.is_empty() && !text.starts_with("---") {
                manifests.push_str("---\n");
            }
            manifests.push_str(text);
            if !manifests.ends_with('\n') {
                manifests.push('\n');
            }
        }
        manifests
    }
}

fn read(checkout: &Checkout, path: &Path, room: u64) -> Result<Vec<u8>, RenderError> {
    let inside = checkout.resolve_path(Path::new(""), &path.to_string_lossy())?;
    let io = |source: std::io::Error| WorkspaceError::Io { path: shown(path), source: source.into() };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(checkout.root().join(inside)).map_err(io)?;
    file.take(room.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > room {
        let hint = Some("leave files out with `directory-exclude`, or raise `--max-directory-bytes`".into());
        return Err(RenderError::Invalid { what: "the directory's manifests are too long".into(), hint });
    }
    Ok(bytes)
}

/// Is a file that cannot be read as objects meant to be some? Argo CD looks for the three keys and takes no excuse of a JSON file; a
/// placeholder in what is no YAML was meant to be resolved.
fn is_meant(path: &Path, text: &str) -> bool {
    let is_json = path.extension().is_some_and(|end| end == "json");
    let is_hidden = || text.contains("$(pin ") && (text.contains('\u{fffd}') || Tree::parse(text).is_err());
    is_json || is_hidden() || ["apiVersion:", "kind:", "metadata:"].iter().all(|key| text.contains(key))
}

/// Is it one object, which is what Argo CD allows a JSON file to hold?
fn check_json(text: &str) -> Result<(), String> {
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(serde_json::Value::Object(_)) => check(text),
        Ok(_) => Err("a JSON file holds one object".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Is every document an object with a kind, as Kubernetes' decoder wants it?
fn check(text: &str) -> Result<(), String> {
    for document in manifest::documents(text) {
        let tree = Tree::parse(&text[document.range]).map_err(|error| error.to_string())?;
        for root in &tree.roots {
            let is_null = tree.text(*root).is_some_and(|text| matches!(text, "" | "~" | "null"));
            let kind = tree.get(*root, "kind").and_then(|kind| tree.text(kind)).unwrap_or_default();
            if !is_null && kind.is_empty() {
                return Err("`kind` is missing".into());
            }
        }
    }
    Ok(())
}

/// UTF-8 or UTF-16 with a byte order mark; anything else is no manifest.
fn decode(bytes: &[u8]) -> Option<String> {
    let utf16 = |read: fn([u8; 2]) -> u16| {
        let units = bytes[2..].chunks_exact(2).map(|pair| read([pair[0], pair[1]]));
        char::decode_utf16(units).collect::<Result<String, _>>().ok()
    };
    match bytes {
        [0xff, 0xfe, ..] => utf16(u16::from_le_bytes),
        [0xfe, 0xff, ..] => utf16(u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8(rest.to_vec()).ok(),
        _ => String::from_utf8(bytes.to_vec()).ok(),
    }
}

/// A glob in which `*` crosses directories, as in the library that Argo CD uses for these two.
fn matcher(parameter: &str, pattern: &str) -> Result<GlobMatcher, RenderError> {
    glob(pattern, false).map_err(|reason| RenderError::invalid(format!("parameter `{parameter}` is not a pattern: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use std::fs;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n";

    fn render(files: &[(&str, &[u8])], change: impl FnOnce(&mut Application, &mut Tools)) -> Result<String, String> {
        let dir = tempfile::tempdir().expect("a directory");
        for (path, bytes) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).and_then(|()| fs::write(path, bytes)).expect("a file");
        }
        let checkout = Checkout::open(dir.path(), Some("")).expect("a checkout");
        let mut application = Application::default();
        let raw = config::Raw { max_directory_bytes: Some(10_000), ..config::Raw::default() };
        let mut tools = raw.check().expect("settings").tools;
        change(&mut application, &mut tools);
        Plan::prepare(&checkout, &application, &tools)
            .map(|plan| plan.run(&Substituted::new()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn manifests_are_taken_in_order_and_other_files_left() {
        let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain(POD.encode_utf16().flat_map(u16::to_le_bytes)).collect();
        let files: [(&str, &[u8]); 9] = [
            ("b.yaml", b"---\nkind: B\n"),
            ("a.yml", b"kind: A"),
            ("c.json", b"{\"kind\": \"C\"}\n"),
            ("d.yaml", &utf16),
            ("values.yaml", b"replicas: 1\n"),
            ("e.yaml", b"# +argocd:skip-file-rendering\nkind: E\n"),
            (".pinion.yaml", b"apiVersion: pinion.dev/v1\nkind: Rules\n"),
            ("sub/f.yaml", b"kind: F\n"),
            ("README.md", b"kind: G\n"),
        ];
        let flat = render(&files, |_, _| {}).expect("manifests");
        assert_eq!(flat, format!("kind: A\n---\nkind: B\n---\n{{\"kind\": \"C\"}}\n---\n{POD}"));
        let deep = render(&files, |app, _| app.parameters.directory.recurse = true).expect("manifests");
        assert!(deep.ends_with("---\nkind: F\n"));
    }

    #[test]
    fn patterns_choose_files() {
        let files: [(&str, &[u8]); 3] = [("a.yaml", b"kind: A\n"), ("x/b.yaml", b"kind: B\n"), ("x/y/c.yaml", b"kind: C\n")];
        let chosen = render(&files, |app, _| {
            app.parameters.directory.recurse = true;
            app.parameters.directory.include = Some("{a,x/*}.yaml".into());
            app.parameters.directory.exclude = Some("*c.yaml".into());
        });
        assert_eq!(chosen.expect("manifests"), "kind: A\n---\nkind: B\n");
        for pattern in ["[".to_owned(), "{a,".repeat(12_000) + &"}".repeat(12_000), "{a,".repeat(300), "*".repeat(10_000)] {
            assert!(render(&files, |app, _| app.parameters.directory.include = Some(pattern.clone())).is_err());
            assert!(render(&files, |app, _| app.parameters.directory.exclude = Some(pattern.clone())).is_err());
        }
    }

    #[test]
    fn what_was_meant_as_a_manifest_must_be_one() {
        let error = render(&[("a.yaml", b"apiVersion: v1\nkind: Pod\nmetadata: {name: [}\n")], |_, _| {}).expect_err("broken");
        assert!(error.starts_with("`a.yaml` is not a manifest: "), "{error}");
        for (name, content) in [
            ("a.json", &b"{\"kind\": \"A\""[..]),
            ("a.json", b"[{\"kind\": \"A\"}]"),
            ("a.json", b"{\"kind\": \"A\"} {\"kind\": \"B\"}"),
            ("a.yaml", b"kind: A\na: $(pin x)\nb: \xff\n"),
            ("a.yaml", b"kind: A\nb: {{ x }} }\na: $(pin x)\n"),
        ] {
            let error = render(&[(name, content)], |_, _| {}).expect_err("meant as a manifest");
            assert!(error.contains("is not a manifest: "), "{error}");
        }
    }

    #[test]
    fn the_size_is_bounded() {
        let error = render(&[("a.yaml", POD.as_bytes())], |_, tools| tools.max_directory_bytes = 10).expect_err("too long");
        assert_eq!(error, "the directory's manifests are too long");
    }
}
