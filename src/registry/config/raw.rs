//! An entry of `registries.conf` as it is written, and its checks.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use serde::{Deserialize, Deserializer};

use super::{Endpoint, HUB_API, TagOrder, default_limit};
use crate::image::DOCKER_HUB;
use crate::registry::credential::Source;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default, deserialize_with = "null_is_default")]
    pub registries: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub name: String,
    api_url: String,
    #[serde(default)]
    prefix: String,
    #[serde(default, rename = "ping", deserialize_with = "yes_or_no")]
    _ping: bool,
    #[serde(default)]
    credentials: String,
    #[serde(default)]
    credsexpire: String,
    #[serde(default)]
    tagsortmode: String,
    #[serde(default, deserialize_with = "yes_or_no")]
    insecure: bool,
    #[serde(default)]
    ca_file: String,
    #[serde(default)]
    ca_data: String,
    #[serde(default)]
    defaultns: String,
    limit: Option<u32>,
    #[serde(default, deserialize_with = "yes_or_no")]
    default: bool,
    #[serde(default)]
    realms: Vec<String>,
}

impl Entry {
    /// Checks the entry. Empty texts are what Image Updater takes them for: not given.
    pub fn check(self) -> Result<Endpoint, String> {
        let prefix = canonical_prefix(&self.prefix);
        let api_url = api_url(&self.api_url)?;
        let credentials = match self.credentials.as_str() {
            "" => None,
            text => Some(text.parse::<Source>().map_err(|error| format!("`credentials`: {error}"))?),
        };
        let credentials_expire = match self.credsexpire.as_str() {
            "" => None,
            text => Some(duration(text).ok_or_else(|| format!("`credsexpire` is not a duration such as `11h30m`: `{text}`"))?),
        };
        if !self.ca_data.is_empty() {
            let certificates = reqwest::Certificate::from_pem_bundle(self.ca_data.as_bytes()).unwrap_or_default();
            if certificates.is_empty() {
                return Err("`ca_data` holds no PEM certificate".to_owned());
            }
        }
        let hub = prefix == DOCKER_HUB || api_url.as_str().starts_with(HUB_API);
        Ok(Endpoint {
            limit: match self.limit {
                None => default_limit(hub),
                Some(limit) => NonZeroU32::new(limit),
            },
            realms: self.realms.iter().map(|text| realm(text)).collect::<Result<_, _>>()?,
            name: self.name,
            prefix,
            api_url,
            credentials,
            credentials_expire,
            insecure: self.insecure,
            ca_file: Some(self.ca_file).filter(|path| !path.is_empty()).map(PathBuf::from),
            ca_data: Some(self.ca_data).filter(|text| !text.is_empty()),
            default_namespace: Some(self.defaultns.trim_matches('/').to_owned()).filter(|text| !text.is_empty()),
            tag_order: tag_order(&self.tagsortmode)?,
            declared: true,
            default: self.default,
        })
    }
}

/// In any case, as Image Updater reads it.
fn tag_order(text: &str) -> Result<Option<TagOrder>, String> {
    match text.to_ascii_lowercase().as_str() {
        "" | "none" => Ok(None),
        "latest-first" => Ok(Some(TagOrder::LatestFirst)),
        "latest-last" => Ok(Some(TagOrder::LatestLast)),
        _ => Err(format!("`tagsortmode` is `latest-first`, `latest-last` or `none`, not `{text}`")),
    }
}

/// Folds Docker Hub's names as [`crate::image::Repository`] does, and writes the host in lower case.
fn canonical_prefix(text: &str) -> String {
    let text = text.trim_end_matches('/');
    let (host, path) = text.split_once('/').map_or((text, None), |(host, path)| (host, Some(path)));
    let host = host.to_ascii_lowercase();
    let host = match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => DOCKER_HUB,
        host => host,
    };
    path.map_or_else(|| host.to_owned(), |path| format!("{host}/{path}"))
}

fn api_url(text: &str) -> Result<Url, String> {
    let url = web_url(text)
        .ok_or_else(|| format!("`api_url` is not an http or https URL without user, query and fragment: `{text}`"))?;
    match url.host_str() {
        // `https://index.docker.io/v1/` is how Docker names its credentials, and not where its registry answers.
        Some("docker.io" | "index.docker.io" | "registry.hub.docker.com") => {
            Ok(Url::parse(HUB_API).expect("the address is a constant"))
        }
        _ => Ok(url),
    }
}

fn realm(text: &str) -> Result<Url, String> {
    web_url(text)
        .ok_or_else(|| format!("`realms` holds what is not an http or https URL without user, query and fragment: `{text}`"))
}

fn web_url(text: &str) -> Option<Url> {
    let mut url = Url::parse(text.trim_end_matches('/')).ok()?;
    let plain = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
    if !plain || url.host_str().is_none() || url.query().is_some() || url.fragment().is_some() {
        return None;
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Some(url)
}

/// Reads a duration as Go's [`time.ParseDuration`](https://pkg.go.dev/time@go1.23#ParseDuration) does, without signs: `11h30m`, `1.5h`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let number = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let value: f64 = rest[..number].parse().ok()?;
        rest = &rest[number..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += value
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" | "μs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(total).ok().filter(|duration| !duration.is_zero())
}

/// Go's YAML takes `yes` and `on` for booleans, and Image Updater's own examples write them.
fn yes_or_no<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Bool(bool),
        Text(String),
    }
    match Written::deserialize(deserializer)? {
        Written::Bool(value) => Ok(value),
        Written::Text(text) => match text.to_ascii_lowercase().as_str() {
            "yes" | "y" | "on" | "true" => Ok(true),
            "no" | "n" | "off" | "false" => Ok(false),
            _ => Err(serde::de::Error::custom(format!("`{text}` is neither `true` nor `false`"))),
        },
    }
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, seconds) in [("11h30m", 41_400.0), ("1.5h", 5400.0), ("90s", 90.0), ("1h0m0.5s", 3600.5), ("300ms", 0.3)] {
            assert_eq!(duration(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "12", "h", "1d", "-1h", "1h 30m", "0s", "1..5h"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
