//! What the registry holds: repositories with their tags, manifests and blobs, and uploads under way.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use axum::body::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::image::{EMPTY_LAYER, Image, OCI_INDEX};

#[derive(Default)]
pub(super) struct Content {
    pub(super) repositories: BTreeMap<String, Repository>,
    /// What other registries keep here as their storage, by digest.
    pub(super) objects: HashMap<String, Bytes>,
    /// Uploads under way, by their id.
    pub(super) uploads: HashMap<String, Vec<u8>>,
    serial: u64,
    minutes: u64,
}

#[derive(Default)]
pub(super) struct Repository {
    pub(super) tags: BTreeMap<String, Tag>,
    /// The names of the tags in the order in which they were pushed.
    pub(super) by_age: BTreeMap<u64, String>,
    pub(super) manifests: HashMap<String, Manifest>,
    pub(super) blobs: HashMap<String, Bytes>,
}

pub(super) struct Tag {
    pub(super) age: u64,
    /// The manifest's digest; [`None`] for a name that is only listed.
    pub(super) digest: Option<String>,
}

pub(super) struct Manifest {
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
    /// The `created` of the config, as text.
    pub(super) created: Option<String>,
}

impl Content {
    pub(super) fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// The next minute since 2024-01-01, in a calendar whose months all have 28 days: every date is legal and later than the last.
    pub(super) fn next_time(&mut self) -> String {
        self.minutes += 1;
        let (hours, minute) = (self.minutes / 60, self.minutes % 60);
        let (days, hour) = (hours / 24, hours % 24);
        let (months, day) = (days / 28, days % 28 + 1);
        let (year, month) = (2024 + months / 12, months % 12 + 1);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:00Z")
    }

    pub(super) fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    pub(super) fn push_blob(&mut self, repository: &str, bytes: Vec<u8>) -> String {
        let digest = digest(&bytes);
        self.repository(repository).blobs.insert(digest.clone(), bytes.into());
        digest
    }

    pub(super) fn push_manifest(&mut self, repository: &str, tag: Option<&str>, media_type: &str, bytes: Vec<u8>) -> String {
        let digest = digest(&bytes);
        let created = self.created(repository, &bytes);
        let manifest = Manifest { media_type: media_type.to_owned(), bytes: bytes.into(), created };
        self.repository(repository).manifests.insert(digest.clone(), manifest);
        if let Some(tag) = tag {
            self.set_tag(repository, tag.to_owned(), Some(digest.clone()));
        }
        digest
    }

    pub(super) fn push_image(&mut self, repository: &str, tag: Option<&str>, image: &Image) -> String {
        let config = image.config_bytes();
        let (config_digest, config_size) = (digest(&config), config.len());
        if image.has_config() {
            self.push_blob(repository, config);
        }
        let layer = self.push_blob(repository, EMPTY_LAYER.to_vec());
        let manifest = image.manifest(&config_digest, config_size, &layer);
        self.push_manifest(repository, tag, image.media_type(), manifest.to_string().into_bytes())
    }

    pub(super) fn push_index(
        &mut self,
        repository: &str,
        tag: &str,
        images: &[Image],
        attestation: bool,
        annotations: &BTreeMap<String, String>,
    ) -> String {
        let mut entries = Vec::new();
        for image in images {
            let mut entry = self.push_child(repository, image);
            entry["platform"] = image.platform_value();
            entries.push(entry);
        }
        if attestation {
            let subject = entries.first().map_or(Value::Null, |entry| entry["digest"].clone());
            let statement = Image::new().without_created().platform("unknown/unknown").env(format!("SUBJECT={subject}"));
            let mut entry = self.push_child(repository, &statement);
            entry["annotations"] =
                json!({ "vnd.docker.reference.digest": subject, "vnd.docker.reference.type": "attestation-manifest" });
            entry["platform"] = statement.platform_value();
            entries.push(entry);
        }
        let mut index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
        if !annotations.is_empty() {
            index["annotations"] = json!(annotations);
        }
        self.push_manifest(repository, Some(tag), OCI_INDEX, index.to_string().into_bytes())
    }

    /// Pushes an image without a tag and returns its descriptor.
    fn push_child(&mut self, repository: &str, image: &Image) -> Value {
        let digest = self.push_image(repository, None, image);
        let size = self.repository(repository).manifests.get(&digest).map_or(0, |manifest| manifest.bytes.len());
        json!({ "mediaType": image.media_type(), "digest": digest, "size": size })
    }

    /// The `created` of the config that this manifest names.
    fn created(&self, repository: &str, manifest: &[u8]) -> Option<String> {
        let manifest: Value = serde_json::from_slice(manifest).ok()?;
        let config = self.repositories.get(repository)?.blobs.get(manifest["config"]["digest"].as_str()?)?;
        let config: Value = serde_json::from_slice(config).ok()?;
        config["created"].as_str().map(str::to_owned)
    }

    /// Sets a tag. One that moves counts as pushed now.
    pub(super) fn set_tag(&mut self, repository: &str, name: String, digest: Option<String>) {
        let age = self.next_serial();
        let repository = self.repository(repository);
        repository.by_age.insert(age, name.clone());
        if let Some(before) = repository.tags.insert(name, Tag { age, digest }) {
            repository.by_age.remove(&before.age);
        }
    }

    pub(super) fn delete_tag(&mut self, repository: &str, name: &str) -> bool {
        let Some(repository) = self.repositories.get_mut(repository) else { return false };
        let Some(tag) = repository.tags.remove(name) else { return false };
        repository.by_age.remove(&tag.age);
        true
    }

    /// Takes a manifest and every tag of it away.
    pub(super) fn delete_manifest(&mut self, repository: &str, digest: &str) -> bool {
        let Some(repository) = self.repositories.get_mut(repository) else { return false };
        let held = repository.manifests.remove(digest).is_some();
        repository.tags.retain(|_, tag| tag.digest.as_deref() != Some(digest));
        let tags = &repository.tags;
        repository.by_age.retain(|_, name| tags.contains_key(name));
        held
    }

    pub(super) fn digest_of(&self, repository: &str, tag: &str) -> Option<String> {
        self.repositories.get(repository)?.tags.get(tag)?.digest.clone()
    }
}

impl Repository {
    /// The manifest of this tag or digest, with its digest.
    pub(super) fn manifest(&self, reference: &str) -> Option<(&str, &Manifest)> {
        let digest = match self.tags.get(reference) {
            Some(tag) => tag.digest.as_deref()?,
            None => reference,
        };
        self.manifests.get_key_value(digest).map(|(digest, manifest)| (digest.as_str(), manifest))
    }
}

/// `sha256:` and 64 hexadecimal digits.
pub(super) fn digest(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(71);
    text.push_str("sha256:");
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
