//! An OCI layout on disk for skopeo to push from: small images, and indexes of them.
//!
//! Follows the [image layout specification].
//!
//! [image layout specification]: https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md

use std::cell::RefCell;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use pinion::image::Digest;
use serde_json::{Value, json};
use tempfile::TempDir;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A directory of images, each under a name.
#[derive(Debug)]
pub struct Layout {
    directory: TempDir,
    named: RefCell<Vec<Value>>,
}

impl Layout {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("pinion-layout-").tempdir().expect("a directory");
        std::fs::create_dir_all(directory.path().join("blobs/sha256")).expect("made");
        std::fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
        Self { directory, named: RefCell::default() }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Adds an image for linux/amd64 that was built at this time, and returns its digest.
    pub fn image(&self, name: &str, created: &str) -> String {
        let image = self.manifest("linux/amd64", created);
        self.name(name, image)
    }

    /// Adds an index of images, each a platform and a time of building, and returns its digest.
    pub fn index(&self, name: &str, images: &[(&str, &str)]) -> String {
        let manifests: Vec<Value> = images.iter().map(|(platform, created)| self.manifest(platform, created)).collect();
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        let index = self.blob(INDEX, index.to_string().as_bytes());
        self.name(name, index)
    }

    /// A descriptor of an image with one empty layer.
    fn manifest(&self, platform: &str, created: &str) -> Value {
        let (os, architecture) = platform.split_once('/').expect("os/architecture");
        let tar = [0; 1024];
        let mut layer = GzEncoder::new(Vec::new(), Compression::fast());
        layer.write_all(&tar).expect("memory takes it");
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar+gzip", &layer.finish().expect("memory takes it"));
        let config = json!({
            "created": created, "os": os, "architecture": architecture, "config": {},
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(&tar).as_str()] },
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
        let mut descriptor = self.blob(MANIFEST, manifest.to_string().as_bytes());
        descriptor["platform"] = json!({ "os": os, "architecture": architecture });
        descriptor
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes).to_string();
        std::fs::write(self.path().join("blobs").join(digest.replace(':', "/")), bytes).expect("written");
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    fn name(&self, name: &str, mut descriptor: Value) -> String {
        let digest = descriptor["digest"].as_str().expect("text").to_owned();
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        let mut named = self.named.borrow_mut();
        named.push(descriptor);
        let index = json!({ "schemaVersion": 2, "manifests": *named });
        std::fs::write(self.path().join("index.json"), index.to_string()).expect("written");
        digest
    }
}
