//! What Pinion's server is compared with: Argo CD's cmp-server with a plugin whose command is `helm template`, as a process of its own.
//!
//! The steps are those of Argo CD v3.5.1, one after the other: the archive is received into a file and hashed on the way
//! (`receiveFile` of `util/cmp/stream.go`), every entry of it is written (`Untgz` of `util/io/files/tar.go`), the command runs in the
//! application's directory and each document of its output becomes JSON (`cmpserver/plugin/plugin.go`, `kube.SplitYAMLToString`), and
//! the directory is removed before the answer is complete, as a deferred call of a Go handler is. Nothing is kept, and nothing waits
//! for a turn. What is not Go's is faster than Go's, in favour of the baseline: inflating (zlib-rs), SHA-256, reading YAML, writes of
//! the received file that are buffered, and no shell between the server and Helm.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use flate2::bufread::GzDecoder;
use pinion::server::proto::app_stream_request::Request as Part;
use pinion::server::proto::config_management_plugin_service_server::{
    ConfigManagementPluginService, ConfigManagementPluginServiceServer,
};
use pinion::server::proto::{
    AppStreamRequest, CheckPluginConfigurationResponse, EnvEntry, ManifestRequestMetadata, ManifestResponse,
    ParametersAnnouncementResponse, RepositoryResponse,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::support::driver::Driver;

/// First argument of a process that is the baseline; its socket and work directory follow.
const ARGUMENT: &str = "be-argo-cd";

/// Longest message, as Argo CD's.
const MAX_MESSAGE: usize = 100 << 20;

/// The server, until it is dropped.
pub struct Baseline {
    child: std::process::Child,
    dir: tempfile::TempDir,
}

impl Baseline {
    /// Starts this program anew as the server, with the driver's PATH and home, and waits for its socket.
    pub fn start(driver: &Driver, work_dir: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("baseline-").tempdir().expect("a directory");
        let environment = driver.environment().iter().filter(|(name, _)| ["PATH", "HOME"].contains(&name.as_str()));
        let child = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args([ARGUMENT.as_ref(), dir.path().join(SOCKET).as_os_str(), work_dir.as_os_str()])
            .env_clear()
            .envs(environment)
            .env("TMPDIR", dir.path())
            .stdin(Stdio::null())
            .spawn()
            .expect("it starts");
        let baseline = Self { child, dir };
        let started = Instant::now();
        while !baseline.socket().exists() {
            assert!(started.elapsed() < Duration::from_secs(20), "no socket");
            std::thread::sleep(Duration::from_millis(5));
        }
        baseline
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET)
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Named so that its escaped path can be an authority.
const SOCKET: &str = "baseline@v1.sock";

/// Is the server, if the arguments say so; returns otherwise.
pub fn serve_if_told() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(ARGUMENT) {
        return;
    }
    let [socket, work_dir] = [arguments.next(), arguments.next()].map(|argument| PathBuf::from(argument.expect("a path")));
    let work_dir = work_dir.join("_cmp_server");
    let _ = fs::remove_dir_all(&work_dir);
    DirBuilder::new().recursive(true).mode(0o700).create(&work_dir).expect("a work directory");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let listener = UnixListener::bind(socket).expect("a socket");
        let service = ConfigManagementPluginServiceServer::new(Service { work_dir })
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let server = Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener));
        server.await.expect("it serves");
    });
    std::process::exit(0);
}

struct Service {
    work_dir: PathBuf,
}

#[tonic::async_trait]
impl ConfigManagementPluginService for Service {
    async fn generate_manifest(
        &self,
        request: Request<Streaming<AppStreamRequest>>,
    ) -> Result<Response<ManifestResponse>, Status> {
        let dir = tempfile::Builder::new().tempdir_in(&self.work_dir).map_err(failed)?;
        let metadata = receive(request.into_inner(), dir.path()).await?;
        let output = template(&dir.path().join(&metadata.app_rel_path), metadata.env).await?;
        let manifests = documents(&output)?;
        blocking(move || dir.close()).await?;
        Ok(Response::new(ManifestResponse { manifests, source_type: String::new() }))
    }

    async fn check_plugin_configuration(&self, _: Request<()>) -> Result<Response<CheckPluginConfigurationResponse>, Status> {
        Ok(Response::new(CheckPluginConfigurationResponse { is_discovery_configured: false, provide_git_creds: false }))
    }

    async fn match_repository(&self, _: Request<Streaming<AppStreamRequest>>) -> Result<Response<RepositoryResponse>, Status> {
        Err(Status::unimplemented("the benchmark does not ask"))
    }

    async fn get_parameters_announcement(
        &self,
        _: Request<Streaming<AppStreamRequest>>,
    ) -> Result<Response<ParametersAnnouncementResponse>, Status> {
        Err(Status::unimplemented("the benchmark does not ask"))
    }
}

/// Receives the archive into a file, verifies it, unpacks it into the directory, and removes the file.
async fn receive(mut stream: Streaming<AppStreamRequest>, dir: &Path) -> Result<ManifestRequestMetadata, Status> {
    let Some(Part::Metadata(metadata)) = stream.message().await?.and_then(|message| message.request) else {
        return Err(Status::unknown("error getting stream metadata: metadata is nil"));
    };
    let archive = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut writer = BufWriter::with_capacity(64 * 1024, archive.as_file());
    while let Some(message) = stream.message().await? {
        let Some(Part::File(file)) = message.request else { return Err(Status::unknown("stream request file is nil")) };
        writer.write_all(&file.chunk).map_err(failed)?;
        hash.update(&file.chunk);
    }
    writer.flush().map_err(failed)?;
    drop(writer);
    let checksum: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if checksum != metadata.checksum {
        return Err(Status::unknown("file checksum validation error"));
    }
    let dir = dir.to_owned();
    blocking(move || unpack(&archive.reopen()?, &dir).and_then(|()| archive.close())).await?;
    Ok(metadata)
}

/// Writes every entry. A link is made as it is: the benchmark's archives hold none.
fn unpack(archive: &File, dir: &Path) -> io::Result<()> {
    let decoder = GzDecoder::new(BufReader::with_capacity(64 * 1024, archive));
    for entry in tar::Archive::new(decoder).entries()? {
        let mut entry = entry?;
        let name = entry.path()?;
        if name.components().any(|part| matches!(part, Component::ParentDir | Component::RootDir)) {
            return Err(io::Error::other("illegal filepath in archive"));
        }
        let path = dir.join(name);
        if entry.header().entry_type().is_dir() {
            make(&path)?;
        } else {
            make(path.parent().unwrap_or(dir))?;
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o644).open(&path)?;
            io::copy(&mut entry, &mut file)?;
        }
    }
    Ok(())
}

/// `os.MkdirAll`, which looks first.
fn make(dir: &Path) -> io::Result<()> {
    if dir.is_dir() { Ok(()) } else { DirBuilder::new().recursive(true).mode(0o755).create(dir) }
}

/// Helm with the arguments of Argo CD's `helmTemplate` and the environment of its `runCommand`.
async fn template(dir: &Path, environment: Vec<EnvEntry>) -> Result<Vec<u8>, Status> {
    let variable = |name: &str| environment.iter().find(|entry| entry.name == name).map_or("", |entry| entry.value.as_str());
    let mut command = Command::new("helm");
    command.args(["template", ".", "--name-template", variable("ARGOCD_APP_NAME")]);
    command.args(["--namespace", variable("ARGOCD_APP_NAMESPACE"), "--kube-version", variable("KUBE_VERSION")]);
    for version in variable("KUBE_API_VERSIONS").split(',') {
        command.args(["--api-versions", version]);
    }
    command.arg("--include-crds").current_dir(dir).process_group(0).stdin(Stdio::null()).kill_on_drop(true);
    let given = environment.iter().filter(|entry| !entry.name.is_empty());
    let output = command.envs(given.map(|entry| (&entry.name, &entry.value))).output().await.map_err(failed)?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(Status::unknown(format!("helm failed: {}", String::from_utf8_lossy(&output.stderr))))
    }
}

/// Each document as JSON, the empty ones left out.
fn documents(output: &[u8]) -> Result<Vec<String>, Status> {
    let values = serde_yaml::Deserializer::from_slice(output).map(serde_json::Value::deserialize);
    let values = values.filter(|value| !value.as_ref().is_ok_and(serde_json::Value::is_null));
    values.map(|value| Ok(value.map_err(failed)?.to_string())).collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(failed)?.map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::unknown(error.to_string())
}
