//! `tags/list`: one page in a dialect, and the link to the next.

use std::ops::Bound;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::content::Repository;
use super::dialect::{Dialect, Link, Oversize, TagOrder};
use super::http::{Form, Reply, encode};

impl Dialect {
    /// Answers `tags/list`.
    pub(super) fn list(&self, host: &str, name: &str, repository: &Repository, query: &Form) -> Reply {
        let size = match self.page_size(query) {
            Ok(size) => size,
            Err(reply) => return reply,
        };
        let mut last = query.get("last").filter(|_| !self.ignores_last);
        if let Some(last) = last
            && self.refuses_unknown_last
            && !repository.tags.contains_key(last)
        {
            return Reply::unknown_repository(name);
        }
        let mut skip = query.get("next_page").filter(|_| self.link == Link::NextPage).and_then(read_offset).unwrap_or(0);
        if let Some(number) = last.and_then(|last| last.parse().ok())
            && self.link == Link::LosesPrefix
        {
            (last, skip) = (None, number);
        }
        let mut rest = self.names(repository, last).skip(skip);
        let page: Vec<&str> = match size {
            Some(size) => rest.by_ref().take(size).collect(),
            None => rest.by_ref().collect(),
        };
        let more = size.is_some_and(|size| size > 0) && rest.next().is_some();

        let tags = if page.is_empty() && self.null_when_empty { Value::Null } else { json!(page) };
        let mut body = Map::new();
        if self.has_name {
            body.insert("name".to_owned(), json!(name));
        }
        body.insert("tags".to_owned(), tags);
        if self.has_manifests {
            body.insert("child".to_owned(), json!([]));
            body.insert("manifest".to_owned(), manifests(repository));
        }
        let reply = Reply::json(200, &Value::Object(body));
        match (more, page.last(), size) {
            (true, Some(last), Some(size)) => match self.next(host, name, last, size, skip + page.len()) {
                Some(link) => reply.header("link", link),
                None => reply,
            },
            _ => reply,
        }
    }

    fn page_size(&self, query: &Form) -> Result<Option<usize>, Reply> {
        let Some(text) = query.get("n").filter(|_| !self.ignores_n) else { return Ok(self.default_page) };
        let Ok(n) = text.parse::<usize>() else {
            if self.refuses_bad_n {
                return Err(Reply::error(400, "PAGINATION_NUMBER_INVALID", "invalid number of results requested"));
            }
            return Ok(self.default_page);
        };
        match (self.max_page, self.oversize) {
            (Some(max), Oversize::Refuse(status)) if n > max => {
                let message =
                    format!("Invalid parameter at 'maxResults' failed to satisfy constraint: 'Member must have value <= {max}'");
                Err(Reply::error(status, "UNSUPPORTED", &message))
            }
            (Some(max), _) => Ok(Some(n.min(max))),
            (None, _) => Ok(Some(n)),
        }
    }

    /// The names after `last`, in this dialect's order. In an order other than the lexical one, nothing follows an unknown name.
    fn names<'a>(&self, repository: &'a Repository, last: Option<&str>) -> Box<dyn Iterator<Item = &'a str> + 'a> {
        match self.order {
            TagOrder::Lexical => {
                let start = last.map_or(Bound::Unbounded, Bound::Excluded);
                Box::new(repository.tags.range::<str, _>((start, Bound::Unbounded)).map(|(name, _)| name.as_str()))
            }
            TagOrder::OldestFirst => {
                let start = match last.map(|last| repository.tags.get(last)) {
                    None => Bound::Unbounded,
                    Some(Some(tag)) => Bound::Excluded(tag.age),
                    Some(None) => Bound::Excluded(u64::MAX),
                };
                Box::new(repository.by_age.range((start, Bound::Unbounded)).map(|(_, name)| name.as_str()))
            }
            TagOrder::NewestFirst => {
                let end = match last.map(|last| repository.tags.get(last)) {
                    None => Bound::Unbounded,
                    Some(Some(tag)) => Bound::Excluded(tag.age),
                    Some(None) => Bound::Excluded(0),
                };
                Box::new(repository.by_age.range((Bound::Unbounded, end)).rev().map(|(_, name)| name.as_str()))
            }
            TagOrder::Unsorted => {
                let mut names: Vec<&str> = repository.tags.keys().map(String::as_str).collect();
                names.sort_by_cached_key(|name| scatter(name));
                let start = last.map_or(0, |last| names.iter().position(|name| *name == last).map_or(names.len(), |at| at + 1));
                Box::new(names.into_iter().skip(start))
            }
        }
    }

    /// The `Link` to the page after `last`, before which there are `offset` tags.
    pub(super) fn next(&self, host: &str, name: &str, last: &str, size: usize, offset: usize) -> Option<String> {
        let query = format!("?last={}&n={size}", encode(last));
        let path = format!("/v2/{name}/tags/list");
        let target = match self.link {
            Link::Missing => return None,
            Link::Relative => format!("{path}{query}"),
            Link::Absolute => format!("http://{host}{path}{query}"),
            Link::LosesPrefix => {
                let rest = name.split_once('/').map_or(name, |(_, rest)| rest);
                format!("/v2/{rest}/tags/list?last={offset}&n={size}")
            }
            Link::InternalPath => format!("http://{host}/repository/docker-proxy{path}{query}"),
            Link::WrongPort => format!("http://{}:1{path}{query}", host.split(':').next().unwrap_or(host)),
            Link::NextPage => format!("{path}?n={size}&next_page={}", write_offset(offset)),
        };
        Some(format!("<{target}>; rel=\"next\""))
    }
}

/// `next_page` holds an offset, in a wrapping that no client should look into.
fn write_offset(offset: usize) -> String {
    URL_SAFE_NO_PAD.encode(format!("gAAAAABf:{offset}"))
}

fn read_offset(token: &str) -> Option<usize> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    text.strip_prefix("gAAAAABf:")?.parse().ok()
}

/// A number that looks random and is the same in every run: FNV-1a.
fn scatter(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Google's `manifest`: tags and times in milliseconds, as text, by digest.
fn manifests(repository: &Repository) -> Value {
    let mut entries = Map::new();
    for (digest, manifest) in &repository.manifests {
        let created = manifest.created.as_deref().and_then(milliseconds).unwrap_or(0);
        entries.insert(
            digest.clone(),
            json!({
                "imageSizeBytes": manifest.bytes.len().to_string(),
                "layerId": "",
                "mediaType": manifest.media_type,
                "tag": [],
                "timeCreatedMs": created.to_string(),
                "timeUploadedMs": "0",
            }),
        );
    }
    for name in repository.by_age.values() {
        let Some(tag) = repository.tags.get(name) else { continue };
        let Some(entry) = tag.digest.as_ref().and_then(|digest| entries.get_mut(digest)) else { continue };
        entry["timeUploadedMs"] = json!((UPLOADS_BEGAN + tag.age * 60_000).to_string());
        if let Some(tags) = entry["tag"].as_array_mut() {
            tags.push(json!(name));
        }
    }
    Value::Object(entries)
}

/// 2025-01-01, in milliseconds since the epoch: later than any time at which this registry's images are built by default.
const UPLOADS_BEGAN: u64 = 1_735_689_600_000;

/// Reads `2024-01-31T12:00:00…` as milliseconds since the epoch. The day count is Howard Hinnant's
/// [`days_from_civil`](https://howardhinnant.github.io/date_algorithms.html#days_from_civil).
fn milliseconds(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000)
}
