//! An image to push: the config and manifest that a build tool would write, or that an attacker would.

use std::collections::BTreeMap;

use serde_json::{Value, json};

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// An empty layer: Docker's `gzippedEmptyTar`, whose digest is `sha256:a3ed95ca…`.
pub(super) const EMPTY_LAYER: [u8; 32] =
    [31, 139, 8, 0, 0, 9, 110, 136, 0, 255, 98, 24, 5, 163, 96, 20, 140, 88, 0, 8, 0, 0, 255, 255, 46, 175, 181, 239, 0, 4, 0, 0];

/// The digest of [`EMPTY_LAYER`] unpacked: 1024 zeros.
const EMPTY_DIFF: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// An image for one platform: by default `linux/amd64`, built on 2024-01-01, in OCI format, with one empty layer.
#[derive(Clone, Debug)]
pub struct Image {
    /// The config's `created`, any text; [`None`] leaves it out.
    pub created: Option<String>,
    /// Operating system, processor and variant.
    pub platform: (String, String, Option<String>),
    /// The config's labels.
    pub labels: BTreeMap<String, String>,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
    /// The config's environment.
    pub env: Vec<String>,
    /// The `created` of each history entry.
    pub history: Vec<String>,
    docker: bool,
    padding: usize,
    config: Option<Vec<u8>>,
    config_missing: bool,
    config_size: Option<u64>,
    config_urls: Vec<String>,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            created: Some("2024-01-01T00:00:00Z".to_owned()),
            platform: ("linux".to_owned(), "amd64".to_owned(), None),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            env: Vec::new(),
            history: Vec::new(),
            docker: false,
            padding: 0,
            config: None,
            config_missing: false,
            config_size: None,
            config_urls: Vec::new(),
        }
    }
}

impl Image {
    pub fn new() -> Self {
        Self::default()
    }

    /// The time of building, any text: RFC 3339, the epoch of reproducible builds, or nonsense.
    pub fn created(mut self, created: impl Into<String>) -> Self {
        self.created = Some(created.into());
        self
    }

    /// Leaves `created` out of the config.
    pub fn without_created(mut self) -> Self {
        self.created = None;
        self
    }

    /// Sets `os/architecture[/variant]`.
    pub fn platform(mut self, text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        self.platform = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next());
        self
    }

    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds an annotation to the manifest, such as `org.opencontainers.image.created`.
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn env(mut self, entry: impl Into<String>) -> Self {
        self.env.push(entry.into());
        self
    }

    /// Adds a history entry of this time.
    pub fn history(mut self, created: &str) -> Self {
        self.history.push(created.to_owned());
        self
    }

    /// Uses Docker's media types (schema 2) in place of OCI's.
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// Makes the config blob larger by this many bytes. It stays a config, and its size is declared truthfully.
    pub fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// Uses these bytes as the config blob, whatever they are.
    pub fn config(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.config = Some(bytes.into());
        self
    }

    /// Names a config blob that the registry then does not have.
    pub fn config_missing(mut self) -> Self {
        self.config_missing = true;
        self
    }

    /// Declares this size for the config blob in place of the true one, in bytes.
    pub fn config_size(mut self, bytes: u64) -> Self {
        self.config_size = Some(bytes);
        self
    }

    /// Adds a place to get the config from, which a client must not follow (CVE-2020-15157). Goes well with [`Image::config_missing`].
    pub fn config_url(mut self, url: impl Into<String>) -> Self {
        self.config_urls.push(url.into());
        self
    }

    pub(super) fn media_type(&self) -> &'static str {
        if self.docker { DOCKER_MANIFEST } else { OCI_MANIFEST }
    }

    pub(super) fn has_config(&self) -> bool {
        !self.config_missing
    }

    pub(super) fn config_bytes(&self) -> Vec<u8> {
        if let Some(bytes) = &self.config {
            return bytes.clone();
        }
        let (os, architecture, variant) = &self.platform;
        let mut config = json!({ "architecture": architecture, "os": os });
        if let Some(variant) = variant {
            config["variant"] = json!(variant);
        }
        if let Some(created) = &self.created {
            config["created"] = json!(created);
        }
        config["config"] = json!({ "Env": self.env, "Labels": self.labels });
        config["rootfs"] = json!({ "type": "layers", "diff_ids": [EMPTY_DIFF] });
        config["history"] = self.history.iter().map(|created| json!({ "created": created, "created_by": "COPY" })).collect();
        if self.padding > 0 {
            config["x-padding"] = json!("x".repeat(self.padding));
        }
        config.to_string().into_bytes()
    }

    pub(super) fn manifest(&self, config_digest: &str, config_size: usize, layer_digest: &str) -> Value {
        let (config_type, layer_type) = if self.docker {
            ("application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip")
        } else {
            ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip")
        };
        let size = self.config_size.unwrap_or(config_size as u64);
        let mut config = json!({ "mediaType": config_type, "digest": config_digest, "size": size });
        if !self.config_urls.is_empty() {
            config["urls"] = json!(self.config_urls);
        }
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.media_type(),
            "config": config,
            "layers": [{ "mediaType": layer_type, "digest": layer_digest, "size": EMPTY_LAYER.len() }],
        });
        if !self.annotations.is_empty() {
            manifest["annotations"] = json!(self.annotations);
        }
        manifest
    }

    pub(super) fn platform_value(&self) -> Value {
        let (os, architecture, variant) = &self.platform;
        let mut platform = json!({ "architecture": architecture, "os": os });
        if let Some(variant) = variant {
            platform["variant"] = json!(variant);
        }
        platform
    }
}
