//! Charts from elsewhere: indexes and archives of chart repositories by http(s), and charts in OCI registries.
//!
//! Helm itself has no network. What a chart declares is fetched here, through the egress policy and within bounds, and is kept: an index for
//! a minute, and longer where its repository is down; an archive by its origin and digest. Follows Helm's `pkg/repo` and `pkg/registry`.

mod index;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use moka::future::Cache;
use reqwest::Url;
use semver::Version;
use tokio::sync::Semaphore;

use crate::egress::fetch::{FetchError, Fetcher};
use crate::failure::{chain, masked};
use crate::image::{Digest, ImageError, Repository, Tag, printable};
use crate::policy::Constraint;
use crate::registry::{Access, Client, RegistryError, Size};
use crate::turn::aside;
use index::{Entry, Index};

/// Longest index, in bytes.
const MAX_INDEX: usize = 64 << 20;

/// Longest archive, in bytes.
pub const MAX_ARCHIVE: usize = 64 << 20;

/// Time for one file.
const WITHIN: Duration = Duration::from_secs(60);

/// How long an index is fresh.
const FRESH: Duration = Duration::from_secs(60);

/// How long an index may answer when its repository is down.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// Indexes in memory, in bytes of their texts.
const MAX_INDEXES: u64 = 64 << 20;

/// Archives on disk, in bytes. The oldest go first.
const MAX_KEPT: u64 = 512 << 20;

/// Why a chart could not be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChartError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Name(#[from] ImageError),
    #[error("the index of `{repository}` cannot be read: {reason}")]
    Index { repository: String, reason: String },
    #[error("`{repository}` has no chart `{name}`")]
    NoChart { repository: String, name: String },
    #[error("`{repository}` has no `{name}` that satisfies `{version}`; it has {}", few(found))]
    NoVersion { repository: String, name: String, version: String, found: Vec<String> },
}

impl ChartError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Fetch(error) => error.hint(),
            Self::Registry(RegistryError::Denied { .. }) => Some(
                "a chart that must be fetched has to be public: the operator's credentials are for images; commit it below `charts/`".into(),
            ),
            Self::Registry(error) => error.hint(),
            Self::NoVersion { .. } => {
                Some("change the version in Chart.yaml, and run `helm dependency update` for Chart.lock".into())
            }
            Self::Name(_) | Self::Index { .. } | Self::NoChart { .. } => None,
        }
    }
}

fn few(found: &[String]) -> String {
    match found {
        [] => "none that is a version".to_owned(),
        found if found.len() <= 5 => found.join(", "),
        found => format!("{}, … ({} versions)", found[..5].join(", "), found.len()),
    }
}

/// A chart that was found.
#[derive(Clone, Debug)]
pub struct Found {
    pub version: String,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Url { url: String, digest: Option<Digest> },
    Registry(Repository, Tag),
}

#[derive(Clone, Debug)]
struct Kept {
    index: Arc<Index>,
    bytes: u32,
    read: tokio::time::Instant,
}

/// Fetches charts. Clones share what is kept.
#[derive(Clone, Debug)]
pub struct Charts {
    fetcher: Fetcher,
    registry: Client,
    indexes: Cache<String, Kept>,
    /// Where archives are kept; None: nowhere.
    dir: Option<PathBuf>,
    /// To read an index.
    turn: Arc<Semaphore>,
}

impl Charts {
    /// `dir` is for archives, and is made when it is needed.
    pub fn new(fetcher: Fetcher, registry: Client, dir: Option<PathBuf>) -> Self {
        let weigher = |_: &String, kept: &Kept| kept.bytes;
        let indexes = Cache::builder().max_capacity(MAX_INDEXES).weigher(weigher).time_to_live(STALE).build();
        Self { fetcher, registry, indexes, dir, turn: Arc::new(Semaphore::new(1)) }
    }

    /// A file at an address, of at most so many bytes.
    ///
    /// # Errors
    ///
    /// [`FetchError`].
    pub async fn file(&self, url: &str, limit: usize) -> Result<Bytes, FetchError> {
        aside(self.fetcher.get(url, limit, WITHIN)).await
    }

    /// The version of a chart that satisfies a constraint: with several, the newest. As Helm's resolver, a version that is written out is
    /// taken from an OCI registry as it is.
    ///
    /// # Errors
    ///
    /// [`ChartError`]; also when `version` is no constraint.
    pub async fn find(&self, repository: &str, name: &str, version: &str) -> Result<Found, ChartError> {
        match repository.strip_prefix("oci://") {
            Some(place) => self.find_in_registry(place, name, version).await,
            None => self.find_in_index(repository, name, version, false).await,
        }
    }

    /// The very version of a chart that a lock file names.
    ///
    /// # Errors
    ///
    /// [`ChartError`].
    pub async fn find_locked(&self, repository: &str, name: &str, version: &str) -> Result<Found, ChartError> {
        match repository.strip_prefix("oci://") {
            Some(place) => Ok(in_registry(&oci(place, name)?, version)?),
            None => self.find_in_index(repository, name, version, true).await,
        }
    }

    async fn find_in_index(&self, repository: &str, name: &str, version: &str, is_locked: bool) -> Result<Found, ChartError> {
        let index = self.index(repository).await?;
        let shown = || masked(repository);
        let entries = index.get(name).ok_or_else(|| ChartError::NoChart { repository: shown(), name: printable(name) })?;
        let constraint = version.parse::<Constraint>().ok();
        let suits = |entry: &&Entry| match (lenient(&entry.version), &constraint) {
            _ if is_locked => is_same(version, &entry.version),
            (Some(own), Some(constraint)) => constraint.matches(&own),
            _ => false,
        };
        let entry = entries.iter().find(suits).ok_or_else(|| ChartError::NoVersion {
            repository: shown(),
            name: printable(name),
            version: printable(version),
            found: entries.iter().map(|entry| printable(&entry.version)).collect(),
        })?;
        if let Some(place) = entry.url.strip_prefix("oci://") {
            let (repository, _) = crate::image::split_tag(place);
            return Ok(in_registry(&repository.parse()?, &entry.version)?);
        }
        let place = Place::Url { url: absolute(repository, &entry.url), digest: entry.digest.clone() };
        Ok(Found { version: entry.version.clone(), place })
    }

    async fn find_in_registry(&self, place: &str, name: &str, version: &str) -> Result<Found, ChartError> {
        let repository = oci(place, name)?;
        if lenient(version).is_some() {
            return Ok(in_registry(&repository, version)?);
        }
        let listing = aside(self.registry.open(&repository, &Access::Anonymous).tags(Size::Small)).await?;
        let versions = listing.tags.iter().filter_map(|listed| Version::parse(&listed.tag.as_str().replace('_', "+")).ok());
        let mut versions: Vec<Version> = versions.collect();
        versions.sort_by(|a, b| b.cmp_precedence(a));
        let constraint = version.parse::<Constraint>().ok();
        let found = versions.iter().find(|own| constraint.as_ref().is_some_and(|constraint| constraint.matches(own)));
        let found = found.ok_or_else(|| ChartError::NoVersion {
            repository: repository.to_string(),
            name: printable(name),
            version: printable(version),
            found: versions.iter().map(ToString::to_string).collect(),
        })?;
        Ok(in_registry(&repository, &found.to_string())?)
    }

    /// The archive of a chart.
    ///
    /// # Errors
    ///
    /// [`ChartError`].
    pub async fn archive(&self, found: &Found) -> Result<Bytes, ChartError> {
        match &found.place {
            Place::Registry(repository, tag) => {
                let opened = self.registry.open(repository, &Access::Anonymous);
                let blob = aside(opened.chart(tag, MAX_ARCHIVE)).await?;
                let origin = repository.to_string();
                if let Some(kept) = self.kept(&origin, &blob.digest) {
                    return Ok(kept);
                }
                let bytes = aside(opened.blob(&blob, MAX_ARCHIVE)).await?;
                self.keep(&origin, &blob.digest, &bytes);
                Ok(bytes)
            }
            Place::Url { url, digest } => {
                if let Some(kept) = digest.as_ref().and_then(|digest| self.kept(url, digest)) {
                    return Ok(kept);
                }
                let bytes = aside(self.fetcher.get(url, MAX_ARCHIVE, WITHIN)).await?;
                match digest {
                    Some(digest) if Digest::of(&bytes) == *digest => self.keep(url, digest, &bytes),
                    // Helm does not look at it either, unless it is told to verify.
                    Some(_) => tracing::warn!(url = masked(url), "a chart is not what the digest in its index says"),
                    None => {}
                }
                Ok(bytes)
            }
        }
    }

    async fn index(&self, repository: &str) -> Result<Arc<Index>, ChartError> {
        let kept = self.indexes.get(repository).await;
        if let Some(kept) = kept.as_ref().filter(|kept| kept.read.elapsed() < FRESH) {
            return Ok(Arc::clone(&kept.index));
        }
        let url = format!("{}/index.yaml", repository.trim_end_matches('/'));
        match aside(self.fetcher.get(&url, MAX_INDEX, WITHIN)).await {
            Ok(bytes) => {
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                // One at a time: a long one takes a processor for seconds.
                let _turn = self.turn.acquire().await;
                let read =
                    tokio::task::spawn_blocking(move || index::read(&bytes)).await.unwrap_or_else(|error| Err(error.to_string()));
                let index = read.map_err(|reason| ChartError::Index { repository: masked(repository), reason })?;
                let kept = Kept { index: Arc::new(index), bytes: length, read: tokio::time::Instant::now() };
                self.indexes.insert(repository.to_owned(), kept.clone()).await;
                Ok(kept.index)
            }
            Err(error) => match kept {
                Some(kept) => {
                    let (repository, reason) = (masked(repository), chain(&error));
                    tracing::warn!(repository, reason, "using the last index of a chart repository");
                    Ok(kept.index)
                }
                None => Err(error.into()),
            },
        }
    }

    fn kept(&self, origin: &str, digest: &Digest) -> Option<Bytes> {
        let bytes = std::fs::read(self.place(origin, digest)?).ok()?;
        // What stands on disk may be damaged.
        (Digest::of(&bytes) == *digest).then(|| bytes.into())
    }

    /// Keeps an archive, as well as that can be done.
    fn keep(&self, origin: &str, digest: &Digest, bytes: &[u8]) {
        let (Some(dir), Some(place)) = (&self.dir, self.place(origin, digest)) else { return };
        let kept = std::fs::create_dir_all(dir).and_then(|()| {
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            std::io::Write::write_all(&mut file, bytes)?;
            file.persist(&place).map_err(|error| error.error)?;
            prune(dir)
        });
        if let Err(error) = kept {
            tracing::debug!(%error, "a chart could not be kept");
        }
    }

    /// The file of an archive. It is found again only by who could fetch it: an address holds its credential, and who knows nothing but a
    /// digest gets nothing.
    fn place(&self, origin: &str, digest: &Digest) -> Option<PathBuf> {
        let name = Digest::of(format!("{origin}\0{digest}").as_bytes());
        Some(self.dir.as_ref()?.join(format!("{}.tgz", name.as_str().trim_start_matches("sha256:"))))
    }
}

/// Removes the oldest archives past the bound.
fn prune(dir: &Path) -> std::io::Result<()> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_file() {
            files.push((metadata.modified()?, metadata.len(), entry.path()));
        }
    }
    files.sort();
    let mut total: u64 = files.iter().map(|(_, length, _)| length).sum();
    for (_, length, path) in files {
        if total <= MAX_KEPT {
            break;
        }
        std::fs::remove_file(path)?;
        total -= length;
    }
    Ok(())
}

/// The repository of a chart below an `oci://` address.
fn oci(place: &str, name: &str) -> Result<Repository, ImageError> {
    format!("{}/{name}", place.trim_end_matches('/')).parse()
}

/// A chart's version as a tag: `+` is not legal there, and is written `_`.
fn in_registry(repository: &Repository, version: &str) -> Result<Found, ImageError> {
    let tag = version.replace('+', "_").parse()?;
    Ok(Found { version: version.to_owned(), place: Place::Registry(repository.clone(), tag) })
}

/// An address in an index, which counts from the repository's own. A query there goes along, as Helm's `ResolveReferenceURL` does it.
fn absolute(repository: &str, url: &str) -> String {
    let base = Url::parse(&format!("{}/", repository.trim_end_matches('/')));
    match base.and_then(|base| base.join(url)) {
        Ok(joined) => joined.into(),
        Err(_) => url.to_owned(),
    }
}

/// A version as Masterminds' `NewVersion` reads it: with `v` before it, and with parts missing.
fn lenient(text: &str) -> Option<Version> {
    crate::policy::read_version(text)
}

/// Are two versions the same, build metadata left out?
fn is_same(a: &str, b: &str) -> bool {
    match (lenient(a), lenient(b)) {
        (Some(a), Some(b)) => a.cmp_precedence(&b).is_eq(),
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_count_from_the_repository() {
        for (repository, url, expected) in [
            ("https://a.example/charts", "web-1.tgz", "https://a.example/charts/web-1.tgz"),
            ("https://a.example/charts/", "charts/web-1.tgz", "https://a.example/charts/charts/web-1.tgz"),
            ("https://a.example/charts", "https://b.example/x.tgz", "https://b.example/x.tgz"),
            ("https://a.example/charts", "/x.tgz", "https://a.example/x.tgz"),
        ] {
            assert_eq!(absolute(repository, url), expected);
        }
    }
}
