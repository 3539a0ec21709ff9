//! What stands behind a tag: manifests and image configurations, read from the registry's bytes.
//!
//! Follows the [OCI image specification] and Docker's schema 2, which is the same in other words. Bytes go in after their digest was
//! verified. Descriptors' `urls` are not read at all (CVE-2020-15157).
//!
//! [OCI image specification]: https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md

use std::collections::BTreeMap;

use jiff::Timestamp;
use oci_client::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE,
    ImageIndexEntry, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciImageIndex, OciImageManifest,
};
use serde::{Deserialize, Serialize};

use crate::image::{Digest, Platform, printable};

/// The media types that we ask for.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Images of one index. Those that are built have some ten.
const MAX_ENTRIES: usize = 1000;

/// The label and annotation that say when an image was built, newest convention first.
const CREATED: [&str; 2] = ["org.opencontainers.image.created", "org.label-schema.build-date"];

/// A manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The digest of its bytes.
    #[serde(with = "text")]
    pub digest: Digest,
    pub content: Content,
}

/// What a manifest describes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Content {
    /// Images for several platforms.
    Index {
        entries: Vec<Entry>,
        /// The index's annotation. The epoch, which reproducible builds write, is [`None`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        created: Option<Timestamp>,
    },
    /// One image.
    Image {
        config: Blob,
        /// The manifest's annotation, as above.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        created: Option<Timestamp>,
    },
    /// No image: an artifact such as a chart or a signature, or Docker's schema 1.
    #[serde(rename_all = "camelCase")]
    Other { media_type: String },
}

/// An image of an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// [`None`] where the index names none or `unknown/unknown`, as BuildKit's attestations do: no image to run.
    #[serde(default, with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(with = "text")]
    pub digest: Digest,
}

/// A blob, as a manifest describes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    #[serde(with = "text")]
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
}

/// What we read of an image's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    #[serde(default, with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// When the image was built: the configuration's `created`, or the label `org.opencontainers.image.created` (then
    /// `org.label-schema.build-date`) where `created` is missing, malformed or the epoch (1980 or before) that reproducible builds
    /// write. The epoch stays where no label knows better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
}

/// What only decides how the rest is to be read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: u8,
    media_type: Option<String>,
    artifact_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
}

impl Manifest {
    /// Reads a manifest whose bytes have this digest. `content_type` is the reply's; the manifest's own `mediaType` goes before it.
    ///
    /// # Errors
    ///
    /// What is wrong, for a message.
    pub(super) fn read(bytes: &[u8], content_type: &str, digest: Digest) -> Result<Self, String> {
        let shape: Shape = serde_json::from_slice(bytes).map_err(|error| format!("a manifest that is not one: {error}"))?;
        let other = |media_type: &str| Content::Other { media_type: printable(media_type) };
        let media_type = shape.media_type.as_deref().unwrap_or(content_type);
        let content = match media_type {
            _ if shape.schema_version == 1 => other("application/vnd.docker.distribution.manifest.v1+json"),
            OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE => index(bytes)?,
            OCI_IMAGE_MEDIA_TYPE | IMAGE_MANIFEST_MEDIA_TYPE => image(bytes)?,
            // A registry that stores manifests as plain JSON; the shape says what it is.
            _ if shape.media_type.is_none() && shape.manifests.is_some() && shape.config.is_none() => index(bytes)?,
            _ if shape.media_type.is_none() && shape.manifests.is_none() && shape.config.is_some() => image(bytes)?,
            _ => other(shape.artifact_type.as_deref().unwrap_or(media_type)),
        };
        Ok(Self { digest, content })
    }
}

/// The archive of a chart's manifest: its layer of Helm's type.
///
/// # Errors
///
/// What it is instead, for a message.
pub(super) fn chart(bytes: &[u8]) -> Result<Blob, String> {
    const ARCHIVES: [&str; 2] = ["application/vnd.cncf.helm.chart.content.v1.tar+gzip", "application/tar+gzip"];
    let manifest: OciImageManifest =
        serde_json::from_slice(bytes).map_err(|error| format!("a chart's manifest that is not one: {error}"))?;
    let layer = manifest.layers.iter().find(|layer| ARCHIVES.contains(&layer.media_type.as_str()));
    let layer = layer.ok_or("something that is no chart")?;
    let digest = layer.digest.parse().map_err(|error| format!("a chart's manifest in which {error}"))?;
    Ok(Blob { digest, size: u64::try_from(layer.size).map_err(|_| "a layer of negative size")? })
}

fn index(bytes: &[u8]) -> Result<Content, String> {
    let index: OciImageIndex = serde_json::from_slice(bytes).map_err(|error| format!("an index that is not one: {error}"))?;
    if index.manifests.len() > MAX_ENTRIES {
        return Err(format!("an index of {} images, at most {MAX_ENTRIES} are read", index.manifests.len()));
    }
    let entries = index.manifests.iter().map(entry).collect::<Result<_, _>>()?;
    Ok(Content::Index { entries, created: annotated(index.annotations.as_ref()) })
}

fn entry(entry: &ImageIndexEntry) -> Result<Entry, String> {
    let platform = entry.platform.as_ref().and_then(|platform| {
        let variant = platform.variant.as_deref().filter(|variant| !variant.is_empty());
        read_platform(&platform.os.to_string(), &platform.architecture.to_string(), variant)
    });
    Ok(Entry { platform, digest: entry.digest.parse().map_err(|error| format!("an index in which {error}"))? })
}

fn image(bytes: &[u8]) -> Result<Content, String> {
    let image: OciImageManifest =
        serde_json::from_slice(bytes).map_err(|error| format!("a manifest that is not one: {error}"))?;
    if ![IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE].contains(&image.config.media_type.as_str()) {
        let media_type = image.artifact_type.as_deref().unwrap_or(&image.config.media_type);
        return Ok(Content::Other { media_type: printable(media_type) });
    }
    let digest = image.config.digest.parse().map_err(|error| format!("a manifest in which {error}"))?;
    let size = u64::try_from(image.config.size).map_err(|_| "a manifest whose config has a negative size")?;
    Ok(Content::Image { config: Blob { digest, size }, created: annotated(image.annotations.as_ref()) })
}

/// The time that annotations give. The epoch is no time here: whoever wants to know reads the configuration.
fn annotated(annotations: Option<&BTreeMap<String, String>>) -> Option<Timestamp> {
    let annotations = annotations?;
    CREATED.iter().filter_map(|name| annotations.get(*name)?.parse().ok()).find(|&created| !is_epoch(created))
}

impl ImageConfig {
    /// Reads an image's configuration.
    ///
    /// # Errors
    ///
    /// What is wrong, for a message.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        // Only what we use is read, and dates as texts: one bad date in the history is no reason to know nothing.
        #[derive(Deserialize)]
        struct Raw {
            #[serde(default)]
            os: String,
            #[serde(default)]
            architecture: String,
            variant: Option<String>,
            created: Option<String>,
            config: Option<Inner>,
        }
        #[derive(Deserialize)]
        struct Inner {
            #[serde(rename = "Labels")]
            labels: Option<BTreeMap<String, String>>,
        }
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|error| format!("an image configuration that is not one: {error}"))?;
        let labels = raw.config.and_then(|inner| inner.labels);
        let stated = raw.created.and_then(|created| created.parse::<Timestamp>().ok());
        let created = match stated {
            Some(created) if !is_epoch(created) => Some(created),
            _ => annotated(labels.as_ref()).or(stated),
        };
        let variant = raw.variant.as_deref().filter(|variant| !variant.is_empty());
        Ok(Self { platform: read_platform(&raw.os, &raw.architecture, variant), created })
    }
}

fn read_platform(os: &str, architecture: &str, variant: Option<&str>) -> Option<Platform> {
    if os == "unknown" {
        return None;
    }
    let variant = variant.map(|variant| format!("/{variant}")).unwrap_or_default();
    format!("{os}/{architecture}{variant}").parse().ok()
}

/// Is this the time that reproducible builds write in place of the time of building? 1970 is `SOURCE_DATE_EPOCH=0`, 1980 the first
/// year that zip archives can hold, which Bazel and Jib's descendants use.
pub(super) fn is_epoch(time: Timestamp) -> bool {
    /// 1981-01-01T00:00:00Z.
    const FIRST: i64 = 347_155_200;
    time.as_second() < FIRST
}

/// Stores a value as its text, and reads it back through its own grammar.
pub(super) mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The same for a value that may be missing.
pub(super) mod optional_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<T: Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        Option::<String>::deserialize(deserializer)?.map(|text| text.parse()).transpose().map_err(D::Error::custom)
    }
}
