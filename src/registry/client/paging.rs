//! Reading all pages of a repository's tags, from every dialect there is.
//!
//! The [specification] leaves paging to the registry, and registries differ: some send everything, some send `Link`, some page only by
//! `last`, some ignore both. So the first request asks for no size. With a `Link` we go on by its
//! cursor, in pages of a thousand, always at our own address: links were seen with lost paths, wrong ports and other hosts. Without
//! one, and when the number of tags looks like a page's size, one more request asks for what follows the last tag.
//!
//! What can't be read to its end is an error, never a shorter list.
//!
//! Where the registry lists in order of time (`tagsortmode`), each tag gets its position in the whole list. A tag that a later page
//! repeats keeps its first one: a registry that starts again, or has moved its pages meanwhile, says nothing new about it.
//!
//! [specification]: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#listing-tags

use std::collections::{BTreeMap, HashSet};

use reqwest::header::{HeaderMap, LINK};
use reqwest::{StatusCode, Url};

use super::Limits;
use super::call::{Call, RedirectPolicy};
use super::connection::Reply;
use crate::image::Tag;
use crate::registry::config::TagOrder;
use crate::registry::error::{Because, RegistryError};
use crate::registry::listing::{Listed, Listing, Page, PageError};

/// The page size that we ask for: ECR allows no more.
const PAGE: usize = 1000;

/// Registries' own page sizes are multiples of this, as far as we know, up to [`PAGE`].
const PAGE_STEP: usize = 50;

/// Longest cursor that is carried on, in bytes.
const MAX_CURSOR: usize = 4096;

/// What asks for a page: the query, without `n`.
type Cursor = Vec<(String, String)>;

/// Reads all tags of a repository.
pub async fn list(call: &Call, limits: &Limits) -> Result<Listing, RegistryError> {
    // A tag that was deleted between two pages can be one that a cursor names, which zot answers with 404. That is worth one new start.
    match Pages::new(call, limits).read().await? {
        Some(listing) => Ok(listing),
        None => Pages::new(call, limits).read().await?.ok_or_else(|| RegistryError::Unavailable {
            registry: call.connection.endpoint.authority(),
            source: Because::cause("its tags changed twice while they were read"),
        }),
    }
}

struct Pages<'a> {
    call: &'a Call,
    limits: &'a Limits,
    tags: BTreeMap<Tag, Listed>,
    illegal: HashSet<Box<str>>,
    pages: usize,
    /// Does the registry take the page size that we ask for?
    sized: bool,
}

/// A page's worth for the list.
struct Read {
    /// How many names it has.
    count: usize,
    last: Option<Box<str>>,
    /// Was there a name that no page before had?
    new: bool,
    next: Option<Cursor>,
}

impl<'a> Pages<'a> {
    fn new(call: &'a Call, limits: &'a Limits) -> Self {
        Self { call, limits, tags: BTreeMap::new(), illegal: HashSet::new(), pages: 0, sized: true }
    }

    /// Reads from the first page to the last; [`None`] if the registry has lost a cursor on the way.
    async fn read(mut self) -> Result<Option<Listing>, RegistryError> {
        let reply = self.request(&[], None).await?;
        if !reply.status.is_success() {
            return Err(self.refusal(&reply));
        }
        let first = self.take(&reply)?;
        let whole = match first.next {
            Some(cursor) => self.by_link(cursor).await?,
            None if first.count > 0 && first.count <= PAGE && first.count.is_multiple_of(PAGE_STEP) => {
                self.by_last(first.last).await?
            }
            None => true,
        };
        let order = self.call.connection.endpoint.tag_order;
        let listing = || Listing { tags: by_age(self.tags, order), dropped: self.illegal.len() };
        Ok(whole.then(listing))
    }

    /// Goes on while there is a link. Says whether the end was reached.
    async fn by_link(&mut self, first: Cursor) -> Result<bool, RegistryError> {
        let mut seen = HashSet::new();
        let mut next = Some(first);
        while let Some(cursor) = next {
            if !seen.insert(cursor.clone()) {
                return Err(self.call.malformed("its pages of tags lead in a circle"));
            }
            let size = self.sized.then_some(PAGE);
            let mut reply = self.request(&cursor, size).await?;
            if size.is_some() && refuses(reply.status) {
                self.sized = false;
                reply = self.request(&cursor, None).await?;
            }
            if reply.status == StatusCode::NOT_FOUND {
                return Ok(false);
            }
            // Whatever the size of a page, it is the last one only if it has no link.
            next = self.take(&reply)?.next;
        }
        Ok(true)
    }

    /// Asks for what follows the last tag until that is nothing new. Says whether the end was reached.
    async fn by_last(&mut self, mut last: Option<Box<str>>) -> Result<bool, RegistryError> {
        let mut probing = true;
        while let Some(tag) = last.take() {
            let reply = self.request(&[("last".to_owned(), tag.into())], None).await?;
            match reply.status {
                StatusCode::NOT_FOUND => return Ok(false),
                // A registry that doesn't know `last` has sent everything.
                status if probing && refuses(status) => break,
                _ => {}
            }
            probing = false;
            let page = self.take(&reply)?;
            if let Some(cursor) = page.next {
                return self.by_link(cursor).await;
            }
            last = page.last.filter(|_| page.new);
        }
        Ok(true)
    }

    async fn request(&mut self, cursor: &[(String, String)], size: Option<usize>) -> Result<Reply, RegistryError> {
        if self.pages == self.limits.pages {
            return Err(self.call.too_large(format!("{} pages of tags", self.limits.pages)));
        }
        self.pages += 1;
        let mut request = self.call.get("tags/list", self.limits.page_bytes);
        request.accept = Some("application/json");
        if let Some(size) = size {
            request.url.query_pairs_mut().append_pair("n", &size.to_string());
        }
        if !cursor.is_empty() {
            request.url.query_pairs_mut().extend_pairs(cursor);
        }
        self.call.ask(request, RedirectPolicy::Other).await
    }

    fn refusal(&self, reply: &Reply) -> RegistryError {
        self.call.refusal(reply, &self.call.url("tags/list"), self.call.repository.clone())
    }

    /// Adds a page to the list.
    fn take(&mut self, reply: &Reply) -> Result<Read, RegistryError> {
        if !reply.status.is_success() {
            return Err(self.refusal(reply));
        }
        let too_many = || self.call.too_large(format!("{} tags", self.limits.tags));
        let mut page = Page::read(&reply.body, self.limits.tags).map_err(|error| match error {
            PageError::TooMany => too_many(),
            PageError::Malformed(text) => reply
                .web_page(&self.call.url("tags/list"))
                .unwrap_or_else(|| self.call.malformed(format!("it is no list of tags: {text}"))),
        })?;
        let next = next(&reply.headers, &self.call.url("tags/list")).map_err(|text| self.call.malformed(text))?;
        let before = self.tags.len() + self.illegal.len();
        for tag in page.tags {
            let (digest, created) = page.details.remove(&tag).map_or((None, None), |(digest, created)| (Some(digest), created));
            let position = match self.call.connection.endpoint.tag_order {
                Some(_) => Some(u32::try_from(self.tags.len()).map_err(|_| too_many())?),
                None => None,
            };
            self.tags.entry(tag.clone()).or_insert(Listed { tag, digest, created, position });
        }
        self.illegal.extend(page.illegal);
        let after = self.tags.len() + self.illegal.len();
        if after > self.limits.tags {
            return Err(too_many());
        }
        Ok(Read { count: page.count, last: page.last, new: after > before, next })
    }
}

/// The tags by name, their positions turned so that the oldest has the first.
fn by_age(tags: BTreeMap<Tag, Listed>, order: Option<TagOrder>) -> Vec<Listed> {
    let mut tags: Vec<Listed> = tags.into_values().collect();
    if order == Some(TagOrder::LatestFirst) {
        let last = tags.iter().filter_map(|listed| listed.position).max().unwrap_or_default();
        tags.iter_mut().for_each(|listed| listed.position = listed.position.map(|position| last - position));
    }
    tags
}

/// Does this status refuse the query rather than the question? ECR says 405 to a large `n`, Quay 413, Distribution 400.
fn refuses(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 405 | 413)
}

/// The cursor of the `Link` to the next page ([RFC 8288]): its query without `n`, whatever its path and host are.
///
/// # Errors
///
/// What is wrong, for a message. A `Link` that can't be read could be the one to more tags.
///
/// [RFC 8288]: https://www.rfc-editor.org/rfc/rfc8288#section-3
fn next(headers: &HeaderMap, own: &Url) -> Result<Option<Cursor>, &'static str> {
    for value in headers.get_all(LINK) {
        let mut rest = value.to_str().map_err(|_| "its `Link` header is not text")?.trim();
        while !rest.is_empty() {
            let (target, after) =
                rest.strip_prefix('<').and_then(|rest| rest.split_once('>')).ok_or("its `Link` header is malformed")?;
            let (parameters, after) = split_parameters(after);
            rest = after.trim_start();
            if !is_next(parameters) {
                continue;
            }
            let url = own.join(target).map_err(|_| "its `Link` to the next page is no URL")?;
            let cursor: Cursor =
                url.query_pairs().filter(|(name, _)| name != "n").map(|(name, value)| (name.into(), value.into())).collect();
            let size: usize = cursor.iter().map(|(name, value)| name.len() + value.len()).sum();
            return match (cursor.is_empty(), size > MAX_CURSOR) {
                (true, _) => Err("its `Link` to the next page has no cursor"),
                (_, true) => Err("its `Link` to the next page is too long"),
                _ => Ok(Some(cursor)),
            };
        }
    }
    Ok(None)
}

/// Splits a link's parameters from the links after it, at a comma outside of quotes.
fn split_parameters(text: &str) -> (&str, &str) {
    let mut quoted = false;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => return (&text[..at], &text[at + 1..]),
            _ => {}
        }
    }
    (text, "")
}

/// Do these parameters say `rel=next`? It may be quoted, and one of several relations.
fn is_next(parameters: &str) -> bool {
    parameters.split(';').filter_map(|parameter| parameter.split_once('=')).any(|(name, value)| {
        let relations = value.trim().trim_matches('"');
        name.trim().eq_ignore_ascii_case("rel")
            && relations.split_ascii_whitespace().any(|relation| relation.eq_ignore_ascii_case("next"))
    })
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn read(lines: &[&str]) -> Result<Option<String>, &'static str> {
        let own = Url::parse("https://r.example/v2/a/b/tags/list").expect("a url");
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(LINK, HeaderValue::from_bytes(line.as_bytes()).expect("a header"));
        }
        let join =
            |cursor: Cursor| cursor.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
        next(&headers, &own).map(|cursor| cursor.map(join))
    }

    /// `Link` headers as registries were seen to send them.
    #[test]
    fn cursors_are_found_in_every_link() {
        for (lines, cursor) in [
            (vec!["</v2/a/b/tags/list?last=1.0&n=100>; rel=\"next\""], Some("last=1.0")),
            (vec!["<https://evil.example/v2/x?n=100&last=1.0>; rel=next"], Some("last=1.0")),
            (vec!["</v2/b/tags/list?last=a%2Bb&n=1>;REL=\"Next\""], Some("last=a+b")),
            (vec!["</v2/a/b/tags/list?n=50&next_page=gAAAAAB%3D%3D>; rel=\"next\""], Some("next_page=gAAAAAB==")),
            (vec!["</first>; rel=\"first\", </v2/x?last=2>; title=\"a, <b>; rel=next\"; rel=\"prev next\""], Some("last=2")),
            (vec!["</first>; rel=first", "<?last=3>; rel=next"], Some("last=3")),
            (vec!["</v2/x?last=2>; rel=\"nextish\""], None),
            (vec![""], None),
            (vec![], None),
        ] {
            assert_eq!(read(&lines), Ok(cursor.map(str::to_owned)), "{lines:?}");
        }
    }

    #[test]
    fn links_that_cannot_be_read_are_errors() {
        let long = format!("<?last={}>; rel=next", "x".repeat(MAX_CURSOR));
        for line in ["</v2/x?last=1; rel=next", "nonsense", "</v2/x?n=100>; rel=next", "<http://[>; rel=next", "\u{fc}", &long] {
            assert!(read(&[line]).is_err(), "{line}");
        }
    }
}
