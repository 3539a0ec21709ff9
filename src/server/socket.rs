//! The plugin's socket: one server, one user, removed when the server is told to stop.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as Probe;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use futures::Stream;
use tokio::net::{UnixListener, UnixStream};

/// A listening socket that is removed when dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// Taken by the server.
    listener: Option<UnixListener>,
    /// Another server may have bound the path since.
    is_removed: bool,
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
        Ok(Self { path, listener: Some(listener), is_removed: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listener, once.
    pub fn listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }

    /// Removes the path, so that nobody connects any more. Connections go on.
    pub fn remove(&mut self) {
        if !std::mem::replace(&mut self.is_removed, true) {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The connections to a listener until `stopped`, and then those that wait already: their callers have found the socket.
pub fn connections(
    listener: UnixListener,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = io::Result<UnixStream>> {
    enum State {
        Open(UnixListener, Pin<Box<dyn Future<Output = ()> + Send>>),
        Closing(std::os::unix::net::UnixListener),
    }
    futures::stream::unfold(State::Open(listener, Box::pin(stopped)), async |state| {
        let listener = match state {
            State::Open(listener, mut stopped) => tokio::select! {
                accepted = listener.accept() => return Some((accepted.map(|(stream, _)| stream), State::Open(listener, stopped))),
                () = &mut stopped => listener.into_std().ok()?,
            },
            State::Closing(listener) => listener,
        };
        // Not through tokio, which learns of a waiting connection from the kernel's next event. Without one it would block: that is the end.
        let (stream, _) = listener.accept().ok()?;
        let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        Some((stream, State::Closing(listener)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_removed_socket_leaves_that_of_the_next_server_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s.sock");
        let mut first = Socket::bind(&path).expect("a socket");
        first.remove();
        assert!(!path.exists());
        let second = Socket::bind(&path).expect("a socket");
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
