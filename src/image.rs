//! What an image reference is made of: registry, repository, tag, digest, platform.
//!
//! Text goes in, types that cannot be wrong come out, and the user's spelling is kept for what we print and write. The grammars are
//! those of the [OCI distribution specification] and of Docker's reference normalisation (`nginx` is `docker.io/library/nginx`).
//! Nothing outside these grammars gets past this module, so no tag can carry YAML, a flag, a path or a placeholder.
//!
//! [OCI distribution specification]: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pulling-manifests

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

/// The registry that a name without one belongs to.
pub const DOCKER_HUB: &str = "docker.io";

/// Longest repository name that Docker's grammar accepts, registry included, in bytes.
const MAX_NAME: usize = 255;

/// Why a text is not an image name, a tag, a digest or a platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The text is not `[registry/]repository`.
    #[error("`{text}` is not an image name: {reason}")]
    Name { text: String, reason: &'static str },
    /// The text is not `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
    #[error("`{0}` is not a tag")]
    Tag(String),
    /// The text is not `sha256:` and 64 lower-case hexadecimal digits.
    #[error("`{0}` is not a sha256 digest")]
    Digest(String),
    /// The text is not `os/architecture[/variant]`.
    #[error("`{0}` is not a platform: write `os/architecture[/variant]`, as in `linux/arm64`")]
    Platform(String),
}

/// A legal tag: `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`. Ordered by bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(Box<str>);

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let bytes = text.as_bytes();
        let legal = bytes.len() <= 128
            && bytes.first().is_some_and(|&b| word(b))
            && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-');
        if legal { Ok(Self(text.into())) } else { Err(ImageError::Tag(printable(text))) }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A content digest: `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Box<str>);

impl Digest {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        use std::fmt::Write as _;
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in sha2::Sha256::digest(bytes) {
            write!(text, "{byte:02x}").expect("writing to a string does not fail");
        }
        Self(text.into())
    }
}

impl FromStr for Digest {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        match text.strip_prefix("sha256:") {
            Some(rest) if rest.len() == 64 && rest.bytes().all(hex) => Ok(Self(text.into())),
            _ => Err(ImageError::Digest(printable(text))),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A repository in a registry.
///
/// Equality, order and hash are those of the canonical name: the registry in lower case, Docker Hub's aliases folded to `docker.io`,
/// its one-part names below `library/`. [`Repository::text`] keeps the user's spelling, which is what we write back.
#[derive(Clone, Debug)]
pub struct Repository {
    text: Box<str>,
    registry: Box<str>,
    path: Box<str>,
}

impl Repository {
    /// The user's spelling, without tag and digest.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The canonical registry: a host name in lower case, perhaps with a port; `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's path in its registry, such as `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Did the user leave the registry out?
    pub fn is_unqualified(&self) -> bool {
        split_registry(&self.text).0.is_none()
    }
}

impl FromStr for Repository {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let fail = |reason| ImageError::Name { text: printable(text), reason };
        if text.is_empty() {
            return Err(fail("it is empty"));
        }
        if text.len() > MAX_NAME {
            return Err(fail("it is longer than 255 bytes"));
        }
        let (host, path) = split_registry(text);
        if let Some(host) = host
            && !is_host(host)
        {
            return Err(fail("its first part is not a host name"));
        }
        if !path.split('/').all(is_path_part) {
            return Err(fail(if path.bytes().any(|b| b.is_ascii_uppercase()) {
                "repository names are lower case"
            } else {
                "its parts may hold a-z, 0-9 and single `.`, `_`, `__` or `-` between them"
            }));
        }
        let registry = match host.map(str::to_ascii_lowercase) {
            None => DOCKER_HUB.to_owned(),
            Some(host) if ["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"].contains(&host.as_str()) => {
                DOCKER_HUB.to_owned()
            }
            Some(host) => host,
        };
        let path = if registry == DOCKER_HUB && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
        Ok(Self { text: text.into(), registry: registry.into(), path: path.into() })
    }
}

impl PartialEq for Repository {
    fn eq(&self, other: &Self) -> bool {
        (&self.registry, &self.path) == (&other.registry, &other.path)
    }
}

impl Eq for Repository {}

impl PartialOrd for Repository {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Repository {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (&self.registry, &self.path).cmp(&(&other.registry, &other.path))
    }
}

impl Hash for Repository {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.registry, &self.path).hash(state);
    }
}

/// Writes the canonical name, such as `docker.io/library/nginx`.
impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)
    }
}

/// A reference as it stands in a manifest: `repository[:tag][@digest]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub repository: Repository,
    pub tag: Option<Tag>,
    pub digest: Option<Digest>,
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        Ok(Self { repository: name.parse()?, tag: tag.map(str::parse).transpose()?, digest })
    }
}

/// Splits `repository[:suffix]` at the colon that is not a registry's port.
///
/// What follows the colon may be a tag, or a constraint in Image Updater's notation (`ghcr.io/acme/web:~1.2`). Unlike Image Updater,
/// a port is understood (`localhost:5000/a/b:~1`).
pub fn split_tag(text: &str) -> (&str, Option<&str>) {
    let path = text.rfind('/').map_or(0, |slash| slash + 1);
    match text[path..].find(':') {
        Some(colon) => (&text[..path + colon], Some(&text[path + colon + 1..])),
        None => (text, None),
    }
}

/// An operating system and processor, as in `linux/arm64` or `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    pub os: Box<str>,
    pub architecture: Box<str>,
    pub variant: Option<Box<str>>,
}

impl Platform {
    /// Does an image for `offered` run where `self` is asked for? A wanted platform without a variant takes any variant
    /// (Image Updater, `registry-scanner/pkg/options`); with one, only the same.
    pub fn accepts(&self, offered: &Platform) -> bool {
        self.os == offered.os
            && self.architecture == offered.architecture
            && (self.variant.is_none() || self.variant == offered.variant)
    }

    /// Linux on the processor that this program was built for.
    pub fn native() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }
}

impl FromStr for Platform {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let parts: Vec<&str> = text.split('/').collect();
        let legal = |part: &&str| {
            !part.is_empty()
                && part.len() <= 32
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'_' || b == b'-')
        };
        match parts.as_slice() {
            [os, architecture, rest @ ..] if rest.len() <= 1 && parts.iter().all(legal) => {
                Ok(Self { os: (*os).into(), architecture: (*architecture).into(), variant: rest.first().map(|&v| v.into()) })
            }
            _ => Err(ImageError::Platform(printable(text))),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// A text from outside made fit for a message: control and direction characters replaced, at most 200 characters.
pub fn printable(text: &str) -> String {
    const MAX: usize = 200;
    let hidden = |c: char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let mut shown: String = text.chars().take(MAX).map(|c| if hidden(c) { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// The registry part, if the first part is one: it holds a dot or a colon, or is `localhost`, or has upper case (Docker's rule).
fn split_registry(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, text),
    }
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    let label = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, written out so that no regular expression is compiled for it.
fn is_path_part(part: &str) -> bool {
    let mut separator = String::new();
    let mut any = false;
    for c in part.chars() {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            let legal = matches!(separator.as_str(), "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-');
            if !legal || (!any && !separator.is_empty()) {
                return false;
            }
            separator.clear();
            any = true;
        } else if matches!(c, '.' | '_' | '-') {
            separator.push(c);
        } else {
            return false;
        }
    }
    any && separator.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Docker normalises references, and Argo CD Image Updater 1.3 reads names.
    #[test]
    fn repositories_are_read_as_docker_reads_them() {
        for (text, canonical) in [
            ("nginx", "docker.io/library/nginx"),
            ("acme/web", "docker.io/acme/web"),
            ("docker.io/nginx", "docker.io/library/nginx"),
            ("index.docker.io/a/b", "docker.io/a/b"),
            ("registry-1.docker.io/library/nginx", "docker.io/library/nginx"),
            ("localhost/a", "localhost/a"),
            ("localhost:5000/a/b", "localhost:5000/a/b"),
            ("GHCR.io/acme/web", "ghcr.io/acme/web"),
            ("quay.io/a/b__c/d-e.f", "quay.io/a/b__c/d-e.f"),
        ] {
            let repository: Repository = text.parse().expect(text);
            assert_eq!(repository.to_string(), canonical, "{text}");
            assert_eq!(repository.text(), text);
        }
    }

    #[test]
    fn texts_that_are_no_repository_are_refused() {
        for text in [
            "",
            "a//b",
            "/a",
            "a/",
            "ghcr.io/Acme/web",
            "a b",
            "ghcr.io/a\nb",
            "ghcr.io:99999/a",
            "a/b:тест",
            "-a/b",
            "a___b",
            "[::1]/a",
            "x.y/",
        ] {
            assert!(text.parse::<Repository>().is_err(), "{text}");
        }
        assert!("a/".repeat(200).parse::<Repository>().is_err());
    }

    #[test]
    fn a_port_is_not_a_tag() {
        assert_eq!(split_tag("localhost:5000/a/b"), ("localhost:5000/a/b", None));
        assert_eq!(split_tag("localhost:5000/a/b:~1.0"), ("localhost:5000/a/b", Some("~1.0")));
        assert_eq!(split_tag("nginx:>=1.2 <2"), ("nginx", Some(">=1.2 <2")));
    }

    #[test]
    fn references_keep_tag_and_digest() {
        let digest = Digest::of(b"");
        let text = format!("ghcr.io/a/b:1.2@{digest}");
        let reference: Reference = text.parse().expect("a reference");
        assert_eq!(reference.repository.to_string(), "ghcr.io/a/b");
        assert_eq!(reference.tag.expect("a tag").as_str(), "1.2");
        assert_eq!(reference.digest, Some(digest));
        assert!("a/b:".parse::<Reference>().is_err());
        assert!("a/b@sha256:12".parse::<Reference>().is_err());
    }

    /// Names that registries were seen to send, and names that would break a file, a log or YAML.
    #[test]
    fn hostile_tags_are_refused() {
        let long = "a".repeat(129);
        for text in ["", ".a", "-a", "a b", "a\nb", "../../x", "тест", "a+b", "\u{202e}x", "$(pin x)", long.as_str()] {
            assert!(text.parse::<Tag>().is_err(), "{text}");
        }
        for text in ["latest", "_a", "1.10", "v1.2.3-rc.1", "main-0a1b2c3", &"a".repeat(128)] {
            assert!(text.parse::<Tag>().is_ok(), "{text}");
        }
    }

    #[test]
    fn a_wanted_platform_without_variant_takes_any() {
        let platform = |text: &str| text.parse::<Platform>().expect(text);
        assert!(platform("linux/arm64").accepts(&platform("linux/arm64/v8")));
        assert!(!platform("linux/arm64/v8").accepts(&platform("linux/arm64")));
        assert!(!platform("linux/amd64").accepts(&platform("linux/arm64")));
        for text in ["linux", "linux/", "/amd64", "linux/arm/v7/x", "linux amd64", ""] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn messages_hold_no_control_characters() {
        assert_eq!(printable("a\x1b[31m\nb\u{202e}"), "a\u{fffd}[31m\u{fffd}b\u{fffd}");
        assert_eq!(printable(&"x".repeat(500)).chars().count(), 201);
    }
}
