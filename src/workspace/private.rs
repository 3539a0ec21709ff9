//! The private directory of one render: substituted files are written there, never in the checkout, and it is removed when dropped.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use tempfile::TempDir;

use super::{ANY_DEPTH, Budget, Checkout, WorkspaceError, lazy_checkout, shown};

/// The directory.
#[derive(Debug)]
pub struct Workspace {
    dir: TempDir,
    copied: Vec<PathBuf>,
}

impl Workspace {
    /// Makes an empty one below the system's temporary directory (`TMPDIR`), for this user alone.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError::Io`].
    pub fn create() -> Result<Self, WorkspaceError> {
        let dir = tempfile::Builder::new().prefix("pinion-").tempdir();
        let dir = dir.map_err(|error| WorkspaceError::io(&std::env::temp_dir(), error))?;
        Ok(Self { dir, copied: Vec::new() })
    }

    /// Where all of it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A home for tools, empty at first.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError::Io`].
    pub fn home(&self) -> Result<PathBuf, WorkspaceError> {
        self.part("home")
    }

    /// A directory in it, made when it is first asked for.
    fn part(&self, name: &str) -> Result<PathBuf, WorkspaceError> {
        let path = self.dir.path().join(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(WorkspaceError::io(&path, error)),
            _ => Ok(path),
        }
    }

    /// The root of the copied part of the checkout.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("checkout")
    }

    /// Writes a file that has no place in the checkout, such as inline values, and returns its path.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError::Io`].
    pub fn write_extra(&self, name: &str, text: &str) -> Result<PathBuf, WorkspaceError> {
        let path = self.part("files")?.join(name);
        fs::write(&path, text).map_err(|error| WorkspaceError::io(&path, error))?;
        Ok(path)
    }

    /// Copies a directory of the checkout to the same place here, links replaced by what they lead to. Once is enough.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError`], also past the bounds on files and bytes.
    pub fn copy(&mut self, checkout: &Checkout, dir: &Path) -> Result<(), WorkspaceError> {
        if self.copied.iter().any(|copied| dir.starts_with(copied)) {
            return Ok(());
        }
        checkout.extract_directory(dir)?;
        let target = self.root();
        let mut budget = Budget::default();
        fs::create_dir_all(target.join(dir)).map_err(|error| WorkspaceError::io(dir, error))?;
        checkout.walk(dir, ANY_DEPTH, &mut budget, &mut |path| {
            let to = target.join(path);
            let parent = to.parent().expect("a file has a parent");
            fs::create_dir_all(parent)
                .and_then(|()| fs::copy(checkout.root.join(path), &to))
                .map_err(|error| WorkspaceError::io(path, error))?;
            Ok(())
        })?;
        self.copied.push(dir.to_owned());
        Ok(())
    }

    /// Copies a directory of the checkout to the same place here, and what links in it lead to; a link stays one. A tool that goes by
    /// where a file really stands finds everything as in the checkout.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError`], also past the bounds on files and bytes.
    pub fn copy_linked(&mut self, checkout: &Checkout, dir: &Path) -> Result<(), WorkspaceError> {
        checkout.extract_directory(dir)?;
        let mut budget = Budget::default();
        let mut waiting = vec![dir.to_owned()];
        while let Some(dir) = waiting.pop() {
            if self.copied.iter().any(|copied| dir.starts_with(copied)) {
                continue;
            }
            self.copy_one(checkout, &dir, &mut budget, &mut waiting)?;
            self.copied.push(dir);
        }
        Ok(())
    }

    /// Copies one directory; what links lead to is left waiting.
    fn copy_one(
        &self,
        checkout: &Checkout,
        dir: &Path,
        budget: &mut Budget,
        waiting: &mut Vec<PathBuf>,
    ) -> Result<(), WorkspaceError> {
        let to = self.root().join(dir);
        let failed = |error| WorkspaceError::io(dir, error);
        if checkout.root.join(dir).is_file() {
            if !to.exists() {
                budget.take(dir, 0)?;
                let parent = to.parent().expect("a file has a parent");
                fs::create_dir_all(parent).and_then(|()| fs::copy(checkout.root.join(dir), &to)).map_err(failed)?;
            }
            return Ok(());
        }
        fs::create_dir_all(&to).map_err(failed)?;
        for entry in fs::read_dir(checkout.root.join(dir)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (path, kind) = (dir.join(entry.file_name()), entry.file_type().map_err(failed)?);
            let to = to.join(entry.file_name());
            budget.take(dir, if kind.is_file() { entry.metadata().map_err(failed)?.len() } else { 0 })?;
            if kind.is_symlink() {
                // A dangling link is left to the tool, which may never look at it.
                let Ok(target) = fs::canonicalize(entry.path()) else { continue };
                let Ok(target) = target.strip_prefix(&checkout.root) else {
                    return Err(WorkspaceError::Outside { path: shown(&path) });
                };
                if !to.is_symlink() {
                    std::os::unix::fs::symlink(lazy_checkout::way(&path, target), &to).map_err(failed)?;
                }
                waiting.push(target.to_owned());
            } else if kind.is_dir() && entry.file_name() != ".git" {
                self.copy_one(checkout, &path, budget, waiting)?;
            } else if kind.is_file() && !to.exists() {
                fs::copy(entry.path(), &to).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Replaces a copied file's text.
    ///
    /// # Errors
    ///
    /// [`WorkspaceError::Io`].
    pub fn write(&self, path: &Path, text: &str) -> Result<(), WorkspaceError> {
        let mut inside = PathBuf::new();
        for part in path.components() {
            let is_inside = match part {
                Component::Normal(part) => {
                    inside.push(part);
                    true
                }
                Component::ParentDir => inside.pop(),
                Component::CurDir => true,
                Component::RootDir | Component::Prefix(_) => false,
            };
            if !is_inside {
                return Err(WorkspaceError::Outside { path: shown(path) });
            }
        }
        let to = self.root().join(inside);
        let parent = to.parent().expect("a file has a parent");
        fs::create_dir_all(parent).and_then(|()| fs::write(&to, text)).map_err(|error| WorkspaceError::io(path, error))
    }
}
