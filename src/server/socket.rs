//! The plugin's socket: one server, one user, removed at the end.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as Probe;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// A listening socket that is removed when dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// Taken by the server.
    listener: Option<UnixListener>,
}

impl Socket {
    /// Is the place free? What a killed server left behind is no hindrance.
    ///
    /// # Errors
    ///
    /// When another server answers there, or something that is no socket is in the way.
    pub fn check(path: &Path) -> io::Result<()> {
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("`{}` is in the way and is no socket", path.display())))
            }
            Ok(_) if Probe::connect(path).is_ok() => {
                Err(io::Error::new(io::ErrorKind::AddrInUse, format!("another server answers on `{}`", path.display())))
            }
            _ => Ok(()),
        }
    }

    /// Listens. What a killed server left behind is replaced; a server that answers there is not.
    ///
    /// The socket can be used by this process's user alone. Bound under another name and moved, so that nobody meets it half made.
    ///
    /// # Errors
    ///
    /// As [`Socket::check`], and when the directory cannot be written.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let (dir, name) = (path.parent().unwrap_or(Path::new(".")), path.file_name().unwrap_or_default());
        std::fs::create_dir_all(dir)?;
        Self::check(path)?;
        let path = path.to_owned();
        // Argo CD takes every socket in the directory for a plugin, so that the other name must not be there for long, nor be a socket's.
        let new = dir.join(format!(".{}.{}", name.to_string_lossy().trim_end_matches(".sock"), std::process::id()));
        let _ = std::fs::remove_file(&new);
        let listener = UnixListener::bind(&new)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&new, &path)?;
        Ok(Self { path, listener: Some(listener) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listener, once.
    pub fn listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}
