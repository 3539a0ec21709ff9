//! Talks to `pinion serve` as Argo CD's repo-server does: a stream of metadata and archive on the plugin socket, with its authority.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper_util::rt::TokioIo;
use pinion::server::proto::app_stream_request::Request as Part;
use pinion::server::proto::config_management_plugin_service_client::ConfigManagementPluginServiceClient as Client;
use pinion::server::proto::{AppStreamRequest, EnvEntry, File, ManifestRequestMetadata};
use sha2::{Digest, Sha256};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::driver::{Driver, PATIENCE, root};

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Serving {
    pub child: Child,
    pub dir: tempfile::TempDir,
    pub admin: String,
}

impl Serving {
    /// Starts `pinion serve` with the driver's settings and waits until it answers.
    pub fn start(program: &str, driver: &Driver, more: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("pinion-serve-").tempdir().expect("a directory");
        let is_of_the_request = |name: &str| ["ARGOCD_", "KUBE_", "PARAM_"].iter().any(|start| name.starts_with(start));
        let own = driver.environment().iter().filter(|(name, _)| !is_of_the_request(name));
        std::fs::create_dir(dir.path().join("tmp")).expect("made");
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let child = Command::new(program)
            .arg("serve")
            .args(["--admin-address", "127.0.0.1:0"])
            .args(more)
            .args(if more.contains(&"--config-dir-path") { Vec::new() } else { vec!["--config-dir-path".into(), root()] })
            .env_clear()
            .envs(own)
            .env("ARGOCD_PLUGINSOCKFILEPATH", dir.path())
            .env("TMPDIR", dir.path().join("tmp"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("it starts");
        let mut serving = Self { child, dir, admin: String::new() };
        let started = Instant::now();
        // The port is whichever was free; the log says which.
        let told = |log: &str| Some(log.split_once(" admin=")?.1.split_once(' ')?.0.to_owned());
        loop {
            match told(&serving.log()) {
                Some(admin) if serving.socket().exists() => {
                    serving.admin = admin;
                    return serving;
                }
                _ => assert!(started.elapsed() < PATIENCE, "no socket: {}", serving.log()),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("pinion@v1.sock")
    }

    /// What the server wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// What is left of requests: they are cleared away behind the answers, which is waited for.
    pub fn left_behind(&self) -> Vec<PathBuf> {
        let list =
            |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
        let tmp = self.dir.path().join("tmp");
        let started = Instant::now();
        loop {
            let others = list(tmp.clone())
                .into_iter()
                .filter(|path| !path.ends_with("_cmp_server") && !path.ends_with("_cmp_server.lock"));
            let left: Vec<PathBuf> = list(tmp.join("_cmp_server")).into_iter().chain(others).collect();
            if left.is_empty() || started.elapsed() > PATIENCE {
                return left;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A connection as Argo CD makes it.
    pub async fn client(&self) -> Client<Channel> {
        client(&self.socket()).await
    }

    pub async fn client_as(&self, authority: &str) -> Client<Channel> {
        client_as(&self.socket(), authority).await
    }

    /// A connection to the socket.
    pub async fn channel(&self) -> Channel {
        channel(&self.socket()).await
    }

    /// What the admin port answers, with its head.
    pub async fn get(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(&self.admin).await.expect("the port");
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("received");
        answer
    }

    /// Sends a SIGTERM and waits for the end.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).expect("a number");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
        self.child.wait().expect("it ends")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection with the authority that Argo CD 3.2 and later send: the escaped path of the socket, without its first slash.
pub async fn client(socket: &Path) -> Client<Channel> {
    client_as(socket, &socket.display().to_string().trim_start_matches('/').replace('/', "%2F")).await
}

async fn client_as(socket: &Path, authority: &str) -> Client<Channel> {
    let origin: Uri = format!("http://{authority}").parse().expect("an authority");
    Client::with_origin(channel(socket).await, origin).max_decoding_message_size(100 << 20)
}

async fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://plugin");
    endpoint.connect_with_connector(connect).await.expect("a connection")
}

/// The archive of a checkout, as repo-server makes it.
pub fn archive(checkout: &Path) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    builder.follow_symlinks(false);
    builder.append_dir_all(".", checkout).expect("an archive");
    builder.into_inner().and_then(GzEncoder::finish).expect("an archive")
}

/// The messages of a request, with chunks of this size.
pub fn messages(archive: &[u8], path: &str, environment: &[(String, String)], chunk: usize) -> Vec<AppStreamRequest> {
    let checksum: String = Sha256::digest(archive).iter().map(|byte| format!("{byte:02x}")).collect();
    let metadata = ManifestRequestMetadata {
        app_name: Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned(),
        app_rel_path: path.to_owned(),
        checksum,
        size: i64::try_from(archive.len()).expect("it fits"),
        env: environment.iter().map(|(name, value)| EnvEntry { name: name.clone(), value: value.clone() }).collect(),
    };
    let chunks = archive.chunks(chunk).map(|chunk| Part::File(File { chunk: chunk.to_vec().into() }));
    std::iter::once(Part::Metadata(metadata)).chain(chunks).map(|part| AppStreamRequest { request: Some(part) }).collect()
}

/// The application's variables among a driver's.
pub fn environment(driver: &Driver) -> Vec<(String, String)> {
    let of_the_request = |name: &str| ["ARGOCD_", "KUBE_", "PARAM_"].iter().any(|start| name.starts_with(start));
    driver
        .environment()
        .iter()
        .filter(|(name, _)| of_the_request(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
