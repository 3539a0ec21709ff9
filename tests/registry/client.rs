//! The client against the fake registry: every dialect, every fault, every bound, and who may see which credential.

// This file may be included by `#[path]`, below which rustc would look for the modules beside it.
#[path = "client/authorisation.rs"]
mod authorisation;
#[path = "client/host.rs"]
mod host;
#[path = "client/listing.rs"]
mod listing;
#[path = "client/metadata.rs"]
mod metadata;
#[path = "client/outage.rs"]
mod outage;
#[path = "client/redirect.rs"]
mod redirect;
#[path = "client/scope.rs"]
mod scope;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pinion::egress::Policy;
use pinion::image::{Digest, Platform, Repository, Tag};
use pinion::registry::{
    Access, Blob, Client, Content, ImageConfig, Limits, Listing, Manifest, ManifestRef, RegistriesConfig, RegistryError, Size,
};

use crate::support::driver::until;
use crate::support::registry::{
    Auth, Bearer, Cursor, Dialect, FakeRegistry, Fault, Gate, Image, Link, Route, TagOrder, TokenText, When,
};

static OPERATOR: Access = Access::Operator;

/// Asks a repository that is opened for one question.
trait Ask {
    fn identity(&self, repository: &Repository, access: &Access) -> String;
    async fn tags(&self, repository: &Repository, access: &Access) -> Result<Arc<Listing>, RegistryError>;
    async fn digest(&self, repository: &Repository, tag: &Tag, access: &Access) -> Result<Digest, RegistryError>;
    async fn manifest(
        &self,
        repository: &Repository,
        target: &ManifestRef,
        access: &Access,
    ) -> Result<Arc<Manifest>, RegistryError>;
    async fn config(&self, repository: &Repository, blob: &Blob, access: &Access) -> Result<Arc<ImageConfig>, RegistryError>;
}

impl Ask for Client {
    fn identity(&self, repository: &Repository, access: &Access) -> String {
        self.open(repository, access).identity().to_owned()
    }

    async fn tags(&self, repository: &Repository, access: &Access) -> Result<Arc<Listing>, RegistryError> {
        self.open(repository, access).tags(Size::Large).await.map(Arc::new)
    }

    async fn digest(&self, repository: &Repository, tag: &Tag, access: &Access) -> Result<Digest, RegistryError> {
        self.open(repository, access).digest(tag, Size::Large).await
    }

    async fn manifest(
        &self,
        repository: &Repository,
        target: &ManifestRef,
        access: &Access,
    ) -> Result<Arc<Manifest>, RegistryError> {
        self.open(repository, access).manifest(target, Size::Large).await.map(Arc::new)
    }

    async fn config(&self, repository: &Repository, blob: &Blob, access: &Access) -> Result<Arc<ImageConfig>, RegistryError> {
        self.open(repository, access).config(blob, Size::Large).await.map(Arc::new)
    }
}

/// Bounds for tests: no docker configuration of the machine, and more time than any needs.
fn limits() -> Limits {
    Limits {
        deadline: Duration::from_secs(100),
        connect_timeout: Duration::from_secs(60),
        read_timeout: Duration::from_secs(60),
        docker_config: None,
        ..Limits::default()
    }
}

/// A client that knows this registry, with these lines more in its entry of `registries.conf`.
fn client_with(registry: &FakeRegistry, lines: &str, limits: Limits) -> Client {
    Client::new(config(registry, lines), limits)
}

fn config(registry: &FakeRegistry, lines: &str) -> RegistriesConfig {
    let (host, url) = (registry.host(), registry.url());
    let text = format!("registries:\n- name: fake\n  prefix: '{host}'\n  api_url: {url}\n  limit: 0\n{lines}");
    RegistriesConfig::parse(&text, Path::new("registries.conf")).expect("a configuration")
}

fn client(registry: &FakeRegistry) -> Client {
    client_with(registry, "", limits())
}

fn repository(registry: &FakeRegistry, path: &str) -> Repository {
    format!("{}/{path}", registry.host()).parse().expect("a repository")
}

fn web(registry: &FakeRegistry) -> Repository {
    repository(registry, "acme/web")
}

fn tag(text: &str) -> Tag {
    text.parse().expect("a tag")
}

fn digest(text: &str) -> Digest {
    text.parse().expect("a digest")
}

fn names(listing: &Listing) -> Vec<&str> {
    listing.tags.iter().map(|listed| listed.tag.as_str()).collect()
}

async fn tags(client: &Client, registry: &FakeRegistry) -> Result<Arc<Listing>, RegistryError> {
    client.tags(&web(registry), &OPERATOR).await
}

async fn manifest(client: &Client, registry: &FakeRegistry, name: &str) -> Result<Arc<Manifest>, RegistryError> {
    client.manifest(&web(registry), &ManifestRef::Tag(tag(name)), &OPERATOR).await
}

/// The configuration blob of an image.
async fn blob(client: &Client, registry: &FakeRegistry, name: &str) -> Blob {
    match &manifest(client, registry, name).await.expect("a manifest").content {
        Content::Image { config, .. } => config.clone(),
        other => panic!("no image: {other:?}"),
    }
}

async fn image_config(client: &Client, registry: &FakeRegistry, name: &str) -> Result<Arc<ImageConfig>, RegistryError> {
    let blob = blob(client, registry, name).await;
    client.config(&web(registry), &blob, &OPERATOR).await
}

/// Every text that an error shows, its causes and hint included.
fn shown(error: &RegistryError) -> String {
    let mut text = format!("{error:?} {error} {:?}", error.hint());
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(&format!(" {cause}"));
        next = cause.source();
    }
    text
}

/// A program that prints a file's text, and that file.
struct Script {
    directory: tempfile::TempDir,
}

impl Script {
    fn printing(text: &str) -> Self {
        let script = Self { directory: tempfile::tempdir().expect("a directory") };
        script.now_prints(text);
        let path = script.path();
        std::fs::write(&path, "#!/bin/sh\necho x >> \"${0%/*}/runs\"\ncat \"${0%/*}/text\"\n").expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        script
    }

    fn now_prints(&self, text: &str) {
        std::fs::write(self.directory.path().join("text"), text).expect("written");
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("credential")
    }

    fn source(&self) -> String {
        format!("ext:{}", self.path().display())
    }

    /// The line for `registries.conf`.
    fn line(&self) -> String {
        format!("  credentials: '{}'\n", self.source())
    }

    fn runs(&self) -> usize {
        std::fs::read_to_string(self.directory.path().join("runs")).map_or(0, |text| text.lines().count())
    }
}

fn unavailable(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Unavailable { .. })
}

fn malformed(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Malformed { .. })
}

fn denied(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Denied { .. })
}
