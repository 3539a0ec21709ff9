//! A real registry as a child process, filled by skopeo.
//!
//! Two kinds: Distribution v3, and Debian's docker-registry 2.8. Both read the same configuration and keep the same files. Each peer has
//! a port and a directory of its own and ends when it is dropped.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

use super::driver::{root, skipped, tool};
use super::layout::Layout;

/// The account of peers with a guard, as skopeo and credentials write it.
pub const ACCOUNT: &str = "alice:s3cret";

/// [`ACCOUNT`] as `htpasswd -B` writes it, at the lowest cost: the peers check it with every request.
const HTPASSWD: &str = "alice:$2b$04$4Z.fEEMy/l9CvarmcfFDYuuoJMa7wnZ6lvR1I.tF6JjZzWFW1zt2C\n";

/// How long a peer may take to start: a busy machine starts it in a second.
const START: Duration = Duration::from_secs(20);

/// Which registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sends everything, unless asked for pages.
    DistributionV3,
    /// Knows no pages.
    Debian,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Self::DistributionV3 => "registry",
            Self::Debian => "docker-registry",
        }
    }
}

/// Whom a peer lets in.
#[derive(Clone, Debug)]
pub enum Guard {
    Open,
    /// [`ACCOUNT`], with a password.
    Htpasswd,
    /// Whoever has a token from this address.
    Token {
        realm: String,
    },
    /// Everybody, over TLS.
    Tls,
}

/// A running registry.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    directory: TempDir,
    guard: Guard,
    port: u16,
    log: Arc<Mutex<String>>,
}

/// The certificates that were made for the tests: an authority, and a server at 127.0.0.1.
pub fn certificate(name: &str) -> PathBuf {
    root().join("tests/registry/tls").join(name)
}

/// The paths of these tools. If one is missing, the test is skipped and says so past libtest's capture; where `CI` is set it fails.
pub fn tools<const N: usize>(names: [&str; N]) -> Option<[PathBuf; N]> {
    let found = names.map(tool);
    if let Some(missing) = names.iter().zip(&found).find(|(_, path)| path.is_none()).map(|(name, _)| name) {
        skipped(&format!("`{missing}` is missing; run scripts/tools {missing}"));
        return None;
    }
    Some(found.map(|path| path.expect("none is missing")))
}

impl Peer {
    /// Starts a registry, or skips the test if it or skopeo is missing.
    ///
    /// # Panics
    ///
    /// With the registry's own words, if it does not start.
    pub fn start(kind: Kind, guard: Guard) -> Option<Self> {
        let [program, _] = tools([kind.program(), "skopeo"])?;
        let directory = tempfile::Builder::new().prefix("pinion-peer-").tempdir().expect("a directory");
        let file = directory.path().join("config.yml");
        std::fs::write(&file, configuration(directory.path(), &guard)).expect("written");
        let mut child = Command::new(program)
            .arg("serve")
            .arg(file)
            .env_clear()
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the registry is a program");
        let log = Arc::default();
        let (ports, listening) = channel();
        // Both pipes are read to their end, or the registry would stop when they are full.
        keep_reading(child.stdout.take().expect("stdout is piped"), &log, None);
        keep_reading(child.stderr.take().expect("stderr is piped"), &log, Some(ports));
        let mut peer = Self { child, directory, guard, port: 0, log };
        peer.port = peer.wait_for(&listening);
        Some(peer)
    }

    fn wait_for(&self, listening: &Receiver<u16>) -> u16 {
        listening.recv_timeout(START).unwrap_or_else(|_| panic!("the registry does not start:\n{}", self.log()))
    }

    /// `127.0.0.1:34567`, the registry part of an image's name.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where it answers.
    pub fn url(&self) -> String {
        let scheme = if matches!(self.guard, Guard::Tls) { "https" } else { "http" };
        format!("{scheme}://{}", self.host())
    }

    /// An image's name at this registry.
    pub fn image(&self, repository: &str) -> String {
        format!("{}/{repository}", self.host())
    }

    /// registries.conf for this registry, with more lines in its entry.
    pub fn entry(&self, more: &str) -> String {
        let (host, url) = (self.host(), self.url());
        format!("registries:\n- name: peer\n  prefix: '{host}'\n  api_url: {url}\n  limit: 0\n{more}")
    }

    /// What it has said, requests included.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Pushes what the layout has under this name.
    pub fn push(&self, layout: &Layout, name: &str, repository: &str, tag: &str) {
        let source = format!("oci:{}:{name}", layout.path().display());
        let target = format!("docker://{}:{tag}", self.image(repository));
        // Without these two skopeo would copy one platform of an index, and be free to write manifests anew.
        self.skopeo("dest-", ["copy", "--all", "--preserve-digests", "--quiet"], [source, target]);
    }

    /// All tags of an open peer, as skopeo lists them.
    pub fn tags(&self, repository: &str) -> BTreeSet<String> {
        let output = self.list_tags(repository).output().expect("skopeo is a program");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let listed: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let tags = listed["Tags"].as_array().expect("tags");
        tags.iter().map(|tag| tag.as_str().expect("text").to_owned()).collect()
    }

    /// The command that lists the tags of an open peer.
    pub fn list_tags(&self, repository: &str) -> Command {
        let mut command = self.command();
        command.args(["list-tags", "--tls-verify=false"]).arg(format!("docker://{}", self.image(repository)));
        command
    }

    /// The digest of a tag's manifest or index, as skopeo says it.
    pub fn digest(&self, repository: &str, tag: &str) -> String {
        let image = format!("docker://{}:{tag}", self.image(repository));
        self.skopeo("", ["inspect", "--no-tags", "--format={{.Digest}}"], [image]).trim().to_owned()
    }

    /// Deletes the manifest of a tag, and with it every tag of that manifest.
    pub fn delete(&self, repository: &str, tag: &str) {
        self.skopeo("", ["delete"], [format!("docker://{}:{tag}", self.image(repository))]);
    }

    /// Adds tags of a manifest, as the registry itself writes them: ten thousand are there in a second, where putting them one by one
    /// over http takes half a minute.
    pub fn tag<I: IntoIterator<Item = String>>(&self, repository: &str, digest: &str, names: I) {
        let tags = self.directory.path().join("data/docker/registry/v2/repositories").join(repository).join("_manifests/tags");
        for name in names {
            let current = tags.join(name).join("current");
            std::fs::create_dir_all(&current).expect("made");
            std::fs::write(current.join("link"), digest).expect("written");
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(tool("skopeo").expect("the peer has started"));
        let home = self.directory.path();
        command.env_clear().env("HOME", home).env("TMPDIR", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.arg("--insecure-policy");
        command
    }

    /// Runs skopeo. Its options for the registry have a prefix where there is another side.
    fn skopeo<A: AsRef<OsStr>, B: AsRef<OsStr>>(
        &self,
        prefix: &str,
        options: impl IntoIterator<Item = A>,
        images: impl IntoIterator<Item = B>,
    ) -> String {
        let mut command = self.command();
        command.args(options).arg(format!("--{prefix}tls-verify=false"));
        if matches!(self.guard, Guard::Htpasswd | Guard::Token { .. }) {
            command.arg(format!("--{prefix}creds={ACCOUNT}"));
        }
        let output = command.args(images).output().expect("skopeo is a program");
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{command:?}: {}\n{}", text(&output.stderr), self.log());
        text(&output.stdout)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What both kinds read. They choose a free port and say which.
fn configuration(directory: &Path, guard: &Guard) -> String {
    let data = directory.join("data");
    let mut text = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
         http:\n  addr: 127.0.0.1:0\n  secret: peer\n",
        data.display()
    );
    match guard {
        Guard::Open => {}
        Guard::Htpasswd => {
            let file = directory.join("htpasswd");
            std::fs::write(&file, HTPASSWD).expect("written");
            text += &format!("auth: {{htpasswd: {{realm: peer, path: {}}}}}\n", file.display());
        }
        Guard::Token { realm } => {
            let authority = certificate("ca.pem");
            text += &format!(
                "auth: {{token: {{realm: '{realm}', service: peer, issuer: tokens, rootcertbundle: {}}}}}\n",
                authority.display()
            );
        }
        Guard::Tls => {
            let (certificate, key) = (certificate("server.pem"), certificate("server.key"));
            text += &format!("  tls: {{certificate: {}, key: {}}}\n", certificate.display(), key.display());
        }
    }
    text
}

/// Keeps what comes out of a pipe, and reports the port in it.
fn keep_reading(pipe: impl Read + Send + 'static, log: &Arc<Mutex<String>>, ports: Option<Sender<u16>>) {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let port = line.split_once("listening on 127.0.0.1:").map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()));
            if let (Some(ports), Some(Ok(port))) = (&ports, port.and_then(|mut parts| parts.next()).map(str::parse)) {
                let _ = ports.send(port);
            }
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push_str(&line);
            log.push('\n');
        }
    });
}
