//! Where an application's files are, and where changed copies of them go.
//!
//! A [`Checkout`] is what Argo CD handed us (or a directory on a laptop): it is only read, and no path of an application leads out of
//! it, after symbolic links. A [`Workspace`] is the private directory of one render.

pub mod archive;
pub mod archive_index;
pub mod lazy_checkout;
mod private;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::image::printable;
use lazy_checkout::LazyCheckout;
pub use private::Workspace;

/// Longest file that is read as data, in bytes.
pub const MAX_FILE: u64 = 32 * 1024 * 1024;

/// What may be copied into a workspace.
const MAX_COPIED_BYTES: u64 = 1024 * 1024 * 1024;
const MAX_COPIED_FILES: usize = 100_000;

/// What may be looked at in a checkout.
const MAX_ENTRIES: usize = 2_000_000;

/// As deep as directories go.
pub const ANY_DEPTH: usize = 100;

/// Why a file of an application cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WorkspaceError {
    #[error("`{path}` does not exist")]
    Missing { path: String },
    #[error("`{path}` is not a directory")]
    NoDirectory { path: String },
    #[error("`{path}` leads outside the checkout")]
    Outside { path: String },
    #[error("`{path}` is longer than {limit} bytes")]
    TooLong { path: String, limit: u64 },
    #[error("`{path}` is not UTF-8 text")]
    NotText { path: String },
    #[error("the files below `{path}` are more than a render may copy ({MAX_COPIED_FILES} files, {MAX_COPIED_BYTES} bytes)")]
    TooMuch { path: String },
    #[error("`{path}` cannot be read")]
    Io {
        path: String,
        #[source]
        source: Arc<io::Error>,
    },
}

impl WorkspaceError {
    fn io(path: &Path, source: io::Error) -> Self {
        let path = shown(path);
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing { path },
            _ => Self::Io { path, source: Arc::new(source) },
        }
    }
}

/// The directory that holds an application and whatever it refers to.
#[derive(Clone, Debug)]
pub struct Checkout {
    root: PathBuf,
    app: PathBuf,
    /// What brings files to the disk when they are asked for; [`None`] where all of them are there.
    tree: Option<Arc<LazyCheckout>>,
}

impl Checkout {
    /// Finds the checkout around an application's directory.
    ///
    /// `source_path` is the application's path in its repository, as Argo CD gives it: as much of it as the directory ends with leads
    /// to the root. Without it, or if none of it does, the root is the nearest directory above with a `.git`, or the directory itself.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError`] when the directory does not exist.
    pub fn open(dir: &Path, source_path: Option<&str>) -> Result<Self, WorkspaceError> {
        let given = dir;
        let dir = fs::canonicalize(given).map_err(|error| WorkspaceError::io(given, error))?;
        if !dir.is_dir() {
            return Err(WorkspaceError::NoDirectory { path: shown(given) });
        }
        let root = match source_path {
            Some(path) => {
                let parts: Vec<_> = Path::new(path).components().filter(|part| matches!(part, Component::Normal(_))).collect();
                let mut root = dir.as_path();
                for part in parts.iter().rev() {
                    match root.parent() {
                        Some(parent) if root.file_name() == Some(part.as_os_str()) => root = parent,
                        _ => break,
                    }
                }
                // A directory that is reached through a link has another path: the root is where the source path leads to it.
                let is_root = |above: &&Path| {
                    !parts.is_empty()
                        && fs::canonicalize(above.join(parts.iter().collect::<PathBuf>())).is_ok_and(|found| found == dir)
                };
                match dir.ancestors().skip(1).find(is_root) {
                    Some(linked) => linked.to_owned(),
                    None if root == dir && !parts.is_empty() => repository(&dir),
                    None => root.to_owned(),
                }
            }
            None => repository(&dir),
        };
        let app = dir.strip_prefix(&root).expect("the root is above the directory").to_owned();
        Ok(Self { root, app, tree: None })
    }

    /// A checkout that comes to the disk as it is read, the application's directory at once.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError`] when the directory is not there, or not below the root.
    pub fn lazy(tree: Arc<LazyCheckout>, app: &Path) -> Result<Self, WorkspaceError> {
        let checkout = Self { root: tree.root().to_owned(), app: PathBuf::new(), tree: Some(tree) };
        let app = checkout.resolve_path(Path::new(""), &app.to_string_lossy())?;
        if !checkout.root.join(&app).is_dir() {
            return Err(WorkspaceError::NoDirectory { path: shown(&app) });
        }
        checkout.extract_directory(&app)?;
        Ok(Self { app, ..checkout })
    }

    /// Is its directory this render's own?
    pub fn is_own(&self) -> bool {
        self.tree.is_some()
    }

    /// Makes sure that everything below a directory is on disk, and what links in it lead to: before a tool looks there by itself.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError::Io`].
    pub fn extract_directory(&self, dir: &Path) -> Result<(), WorkspaceError> {
        let Some(tree) = &self.tree else { return Ok(()) };
        tree.extract_tree(dir).map(drop).map_err(|error| WorkspaceError::io(dir, error))
    }

    /// Brings everything to the disk. Was anything missing?
    ///
    /// # Errors
    ///
    /// [`WorkspaceError::Io`].
    pub fn extract_all(&self) -> Result<bool, WorkspaceError> {
        let Some(tree) = &self.tree else { return Ok(false) };
        let missing = tree.extract_tree(Path::new("")).map_err(|error| WorkspaceError::io(Path::new(""), error))?;
        Ok(missing > 0)
    }

    /// Writes changed texts over files of a checkout that is this render's own. Returns whether it did: not where it is somebody else's,
    /// nor where there are links, behind which a file may stand in two places.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError::Io`].
    pub fn patch_in_place(&self, files: &[(&PathBuf, &String)]) -> Result<bool, WorkspaceError> {
        if self.tree.as_ref().is_none_or(|tree| tree.has_links()) {
            return Ok(false);
        }
        for (path, text) in files {
            let inside = self.resolve_path(Path::new(""), &path.to_string_lossy())?;
            replace(&self.root.join(inside), text).map_err(|error| WorkspaceError::io(path, error))?;
        }
        Ok(true)
    }

    /// A digest of everything of it that is on disk; [`None`] where that is not known.
    pub fn digest(&self) -> Option<[u8; 32]> {
        self.tree.as_ref().map(|tree| tree.digest())
    }

    /// The checkout's root, absolute and without links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The application's directory, relative to the root.
    pub fn app(&self) -> &Path {
        &self.app
    }

    /// The application's directory, absolute.
    pub fn app_dir(&self) -> PathBuf {
        self.root.join(&self.app)
    }

    /// Finds a file or directory: relative to `base` (itself relative to the root), or to the root with a leading `/`.
    ///
    /// Returns the path relative to the root, free of links: what [`Checkout::read`] takes.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError::Outside`] when the path, or a link on it, leads out of the checkout.
    pub fn resolve_path(&self, base: &Path, path: &str) -> Result<PathBuf, WorkspaceError> {
        let joined = match path.strip_prefix('/') {
            Some(rooted) => self.root.join(rooted.trim_start_matches('/')),
            None => self.root.join(base).join(path),
        };
        // A path that climbs out is refused even where nothing stands, so that an error tells nothing about the machine.
        let mut depth = 0_usize;
        for part in joined.strip_prefix(&self.root).expect("it was joined to the root").components() {
            match part {
                Component::ParentDir => {
                    depth = depth.checked_sub(1).ok_or_else(|| WorkspaceError::Outside { path: printable(path) })?;
                }
                Component::Normal(_) => depth += 1,
                _ => {}
            }
        }
        if let Some(tree) = &self.tree {
            let inside = joined.strip_prefix(&self.root).expect("it was joined to the root");
            tree.extract(inside).map_err(|error| WorkspaceError::io(Path::new(path), error))?;
        }
        let found = fs::canonicalize(&joined).map_err(|error| WorkspaceError::io(Path::new(path), error))?;
        match found.strip_prefix(&self.root) {
            Ok(relative) => Ok(relative.to_owned()),
            Err(_) => Err(WorkspaceError::Outside { path: printable(path) }),
        }
    }

    /// Reads a file of at most [`MAX_FILE`] bytes as text. The path is one that [`Checkout::resolve_path`] gave, or stands in a listed directory.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError`]; also when a link on the way leads out of the checkout.
    pub fn read(&self, path: &Path) -> Result<String, WorkspaceError> {
        let inside = self.resolve_path(Path::new(""), &path.to_string_lossy())?;
        let file = fs::File::open(self.root.join(inside)).map_err(|error| WorkspaceError::io(path, error))?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| WorkspaceError::io(path, error))?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(WorkspaceError::TooLong { path: shown(path), limit: MAX_FILE });
        }
        String::from_utf8(bytes).map_err(|_| WorkspaceError::NotText { path: shown(path) })
    }

    /// Reads a file if it is there.
    ///
    /// # Errors
    ///
    /// As [`Checkout::read`], but for a missing file.
    pub fn read_if_present(&self, path: &Path) -> Result<Option<String>, WorkspaceError> {
        match self.read(path) {
            Err(WorkspaceError::Missing { .. }) => Ok(None),
            read => read.map(Some),
        }
    }

    /// Refuses a directory in which a link leads out of the checkout: tools follow links wherever they lead.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError::Outside`], naming the link.
    pub fn check_links(&self, dir: &Path) -> Result<(), WorkspaceError> {
        if self.tree.is_some() {
            // No link of an archive does, and what they lead to comes with them.
            return self.extract_directory(dir);
        }
        let mut waiting = vec![dir.to_owned()];
        let mut linked = BTreeSet::new();
        let mut entries = 0;
        while let Some(dir) = waiting.pop() {
            let listed = fs::read_dir(self.root.join(&dir)).map_err(|error| WorkspaceError::io(&dir, error))?;
            for entry in listed {
                let entry = entry.map_err(|error| WorkspaceError::io(&dir, error))?;
                let path = dir.join(entry.file_name());
                let kind = entry.file_type().map_err(|error| WorkspaceError::io(&path, error))?;
                entries += 1;
                if entries > MAX_ENTRIES {
                    return Err(WorkspaceError::TooMuch { path: shown(&dir) });
                }
                if kind.is_symlink() {
                    let Ok(target) = fs::canonicalize(entry.path()) else { continue };
                    let Ok(inside) = target.strip_prefix(&self.root) else {
                        return Err(WorkspaceError::Outside { path: shown(&path) });
                    };
                    // Tools follow links to directories too, and there may be links behind them.
                    if target.is_dir() && linked.insert(inside.to_owned()) {
                        waiting.push(inside.to_owned());
                    }
                }
                if kind.is_dir() && entry.file_name() != ".git" {
                    waiting.push(path);
                }
            }
        }
        Ok(())
    }

    /// Visits every file below a directory, at most so many directories deep, links followed, in order of their names. Nothing if it
    /// is no directory.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError`], also where a link leads out of the checkout.
    pub fn files(&self, dir: &Path, depth: usize, visit: &mut dyn FnMut(&Path)) -> Result<(), WorkspaceError> {
        self.extract_directory(dir)?;
        if !self.root.join(dir).is_dir() {
            return Ok(());
        }
        let mut budget = Budget { files: MAX_ENTRIES, bytes: u64::MAX };
        self.walk(dir, depth, &mut budget, &mut |path| {
            visit(path);
            Ok(())
        })
    }

    fn walk(
        &self,
        dir: &Path,
        depth: usize,
        budget: &mut Budget,
        visit: &mut dyn FnMut(&Path) -> Result<(), WorkspaceError>,
    ) -> Result<(), WorkspaceError> {
        let full = self.root.join(dir);
        let mut entries: Vec<_> =
            fs::read_dir(&full).and_then(Iterator::collect).map_err(|error: io::Error| WorkspaceError::io(dir, error))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = dir.join(entry.file_name());
            let kind = entry.file_type().map_err(|error| WorkspaceError::io(&path, error))?;
            if kind.is_symlink() {
                // A dangling link is left to the tool, which may never look at it.
                let Ok(target) = fs::canonicalize(entry.path()) else { continue };
                if !target.starts_with(&self.root) {
                    return Err(WorkspaceError::Outside { path: shown(&path) });
                }
                if full.starts_with(&target) {
                    continue;
                }
            }
            let metadata = fs::metadata(entry.path()).map_err(|error| WorkspaceError::io(&path, error))?;
            if metadata.is_dir() {
                if depth == 0 || path.file_name().is_some_and(|name| name == ".git") {
                    continue;
                }
                budget.take(dir, 0)?;
                self.walk(&path, depth - 1, budget, visit)?;
            } else if metadata.is_file() {
                budget.take(dir, metadata.len())?;
                visit(&path)?;
            }
        }
        Ok(())
    }
}

/// The nearest directory above with a `.git`, or the directory itself.
fn repository(dir: &Path) -> PathBuf {
    dir.ancestors().find(|above| above.join(".git").exists()).unwrap_or(dir).to_owned()
}

/// Counts files and bytes down.
struct Budget {
    files: usize,
    bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { files: MAX_COPIED_FILES, bytes: MAX_COPIED_BYTES }
    }
}

impl Budget {
    fn take(&mut self, dir: &Path, bytes: u64) -> Result<(), WorkspaceError> {
        match (self.files.checked_sub(1), self.bytes.checked_sub(bytes)) {
            (Some(files), Some(bytes)) => (self.files, self.bytes) = (files, bytes),
            _ => return Err(WorkspaceError::TooMuch { path: shown(dir) }),
        }
        Ok(())
    }
}

/// A path for messages.
pub fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    printable(if text.is_empty() { "." } else { &text })
}

/// Puts a new file in place of one, with its permissions. A file that is emptied and written again, ext4 writes to the disk at once.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let permissions = fs::metadata(path)?.permissions();
    fs::remove_file(path)?;
    fs::write(path, text)?;
    fs::set_permissions(path, permissions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::TempDir;

    /// `repo/{apps/web/Chart.yaml, shared/values.yaml}` beside a secret that no application may reach.
    fn fixture() -> (TempDir, Checkout) {
        let dir = tempfile::tempdir().expect("a directory");
        let repo = dir.path().join("repo");
        fs::create_dir_all(repo.join("apps/web/templates")).expect("a tree");
        fs::create_dir_all(repo.join("shared")).expect("a tree");
        fs::write(repo.join("apps/web/Chart.yaml"), "name: web\n").expect("a file");
        fs::write(repo.join("shared/values.yaml"), "a: 1\n").expect("a file");
        fs::write(dir.path().join("secret"), "s3cret").expect("a file");
        let checkout = Checkout::open(&repo.join("apps/web"), Some("apps/web")).expect("a checkout");
        (dir, checkout)
    }

    #[test]
    fn the_root_is_where_the_source_path_starts() {
        let (dir, checkout) = fixture();
        assert_eq!(checkout.app(), Path::new("apps/web"));
        let narrowed = Checkout::open(&dir.path().join("repo/apps/web"), Some("deep/apps/web")).expect("a checkout");
        assert!(narrowed.root().ends_with("repo"));
        let chart_source = Checkout::open(&dir.path().join("repo/apps/web"), Some("")).expect("a checkout");
        assert_eq!(chart_source.app(), Path::new(""));
        fs::create_dir(dir.path().join("repo/.git")).expect("a directory");
        let laptop = Checkout::open(&dir.path().join("repo/apps/web"), None).expect("a checkout");
        assert_eq!(laptop.app(), Path::new("apps/web"));
    }

    #[test]
    fn paths_stay_inside_the_checkout() {
        let (dir, checkout) = fixture();
        let app = checkout.app().to_owned();
        assert_eq!(checkout.resolve_path(&app, "../../shared/values.yaml").expect("inside"), Path::new("shared/values.yaml"));
        assert_eq!(checkout.resolve_path(&app, "/shared/values.yaml").expect("inside"), Path::new("shared/values.yaml"));
        for path in ["../../../secret", "../../../nothing", "/../secret", "../../../../../../etc/passwd"] {
            assert!(matches!(checkout.resolve_path(&app, path), Err(WorkspaceError::Outside { .. })), "{path}");
        }
        assert!(matches!(checkout.resolve_path(&app, "nothing.yaml"), Err(WorkspaceError::Missing { .. })));
        symlink(dir.path().join("secret"), checkout.app_dir().join("link")).expect("a link");
        symlink("link", checkout.app_dir().join("chain")).expect("a link");
        for path in ["link", "chain"] {
            assert!(matches!(checkout.resolve_path(&app, path), Err(WorkspaceError::Outside { .. })), "{path}");
            assert!(matches!(checkout.read(&app.join(path)), Err(WorkspaceError::Outside { .. })), "{path}");
        }
        assert!(matches!(checkout.check_links(&app), Err(WorkspaceError::Outside { .. })));
    }

    #[test]
    fn copies_are_whole_and_leave_the_checkout_alone() {
        let (_dir, checkout) = fixture();
        symlink("../../shared/values.yaml", checkout.app_dir().join("values.yaml")).expect("a link");
        symlink("..", checkout.app_dir().join("templates/loop")).expect("a link");
        let mut workspace = Workspace::create().expect("a workspace");
        workspace.copy(&checkout, checkout.app()).expect("a copy");
        let copy = workspace.root().join("apps/web");
        assert_eq!(fs::read_to_string(copy.join("values.yaml")).expect("a file"), "a: 1\n");
        workspace.write(Path::new("apps/web/values.yaml"), "a: 2\n").expect("written");
        assert_eq!(checkout.read(Path::new("shared/values.yaml")).expect("a file"), "a: 1\n");
        for path in ["/tmp/outside", "../outside", "a/../../outside"] {
            assert!(matches!(workspace.write(Path::new(path), "x"), Err(WorkspaceError::Outside { .. })), "{path}");
        }
        let path = workspace.root();
        drop(workspace);
        assert!(!path.exists());
    }

    #[test]
    fn long_files_and_binary_files_are_refused() {
        let (_dir, checkout) = fixture();
        let file = fs::File::create(checkout.app_dir().join("big")).expect("a file");
        file.set_len(MAX_FILE + 1).expect("a sparse file");
        assert!(matches!(checkout.read(&checkout.app().join("big")), Err(WorkspaceError::TooLong { .. })));
        fs::write(checkout.app_dir().join("binary"), [0xff, 0xfe]).expect("a file");
        assert!(matches!(checkout.read(&checkout.app().join("binary")), Err(WorkspaceError::NotText { .. })));
    }

    #[test]
    fn what_replaces_a_file_has_its_permissions() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("run.sh");
        fs::write(&path, "old").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).expect("set");
        replace(&path, "new").expect("replaced");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o750);
        assert_eq!(fs::read_to_string(&path).expect("text"), "new");
    }

    #[test]
    fn what_is_copied_is_bounded() {
        let mut budget = Budget { files: 2, bytes: 10 };
        assert!(budget.take(Path::new("x"), 10).is_ok());
        assert!(matches!(budget.take(Path::new("x"), 1), Err(WorkspaceError::TooMuch { .. })));
        let mut budget = Budget { files: 1, bytes: 10 };
        assert!(budget.take(Path::new("x"), 0).is_ok() && budget.take(Path::new("x"), 0).is_err());
    }
}
