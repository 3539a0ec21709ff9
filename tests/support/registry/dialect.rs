//! How registries differ where the specification is silent or unheeded: order and paging of tags, and headers.
//!
//! The facts and their sources are collected in `registries.md` §1.4 and §4; each constructor repeats the ones it follows. "Seen" means
//! measured against the real program, "source" read in its code, "reported" told in an issue.

/// The order in which tags are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagOrder {
    /// By bytes.
    Lexical,
    /// In no order, but always the same.
    Unsorted,
    /// As pushed.
    OldestFirst,
    /// The last push first.
    NewestFirst,
}

/// How a reply points to the next page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Not at all: the client must send the last tag it got as `last`.
    Missing,
    /// `</v2/acme/web/tags/list?last=1.0&n=100>`.
    Relative,
    /// With scheme and host.
    Absolute,
    /// Without the first part of the repository, and with a number as `last`: Artifactory. Such a number is understood as a `last`.
    LosesPrefix,
    /// Absolute, with a path that is good at another port only: Nexus.
    InternalPath,
    /// Absolute, with a port that nobody listens on, as behind a proxy that Nexus knows nothing of.
    WrongPort,
    /// With an opaque `next_page`; `last` is ignored.
    NextPage,
}

/// What happens to an `n` above the largest page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oversize {
    /// It is lowered in silence.
    Clamp,
    /// The request is refused with this status.
    Refuse(u16),
}

/// The behaviour of one kind of registry. Begin with a constructor named for a registry and change what a test needs.
#[derive(Clone, Debug)]
pub struct Dialect {
    pub order: TagOrder,
    /// Tags in a page when the request has no `n`; [`None`] is all of them.
    pub default_page: Option<usize>,
    /// The largest `n`.
    pub max_page: Option<usize>,
    pub oversize: Oversize,
    /// Does an `n` that is no number answer 400? Otherwise it counts as absent.
    pub refuses_bad_n: bool,
    pub ignores_n: bool,
    pub ignores_last: bool,
    /// Does a `last` that is no tag of the repository answer 404?
    pub refuses_unknown_last: bool,
    pub link: Link,
    /// Is a page without tags `"tags": null`?
    pub null_when_empty: bool,
    /// Does a listing have a `name`?
    pub has_name: bool,
    /// Does a listing have `manifest`, with times in milliseconds, as Google's do?
    pub has_manifests: bool,
    /// Do manifests have `Docker-Content-Digest`?
    pub digest_header: bool,
    /// Do manifests have an `ETag`, and answer 304 to `If-None-Match`?
    pub etag: bool,
    /// Is an OCI manifest answered with 404 unless `Accept` names its media type?
    pub needs_accept: bool,
    /// Headers on every reply below `/v2/`.
    pub headers: Vec<(String, String)>,
}

/// Constructors, by registry.
impl Dialect {
    /// Distribution v3: no `n` gives everything in lexical order; `n` gives a relative `Link` and is clamped to 1000; a bad `n` answers
    /// 400; `last` need not exist (seen; [source](https://github.com/distribution/distribution/blob/0d6b721/registry/handlers/tags.go)).
    /// Manifests have an `ETag`, and want their media type in `Accept` (source, `manifests.go`).
    pub fn distribution() -> Self {
        Self {
            order: TagOrder::Lexical,
            default_page: None,
            max_page: Some(1000),
            oversize: Oversize::Clamp,
            refuses_bad_n: true,
            ignores_n: false,
            ignores_last: false,
            refuses_unknown_last: false,
            link: Link::Relative,
            null_when_empty: false,
            has_name: true,
            has_manifests: false,
            digest_header: true,
            etag: true,
            needs_accept: true,
            headers: Vec::new(),
        }
    }

    /// What most registries share: relative links, one size of page, `n` honoured and clamped.
    fn paged(default: Option<usize>, max: Option<usize>) -> Self {
        Self { default_page: default, max_page: max, refuses_bad_n: false, needs_accept: false, ..Self::distribution() }
    }

    /// Debian's Distribution 2.8.2: everything in one reply, unsorted, whatever `n` and `last` say, and never a `Link` (seen).
    pub fn debian() -> Self {
        Self {
            order: TagOrder::Unsorted,
            max_page: None,
            refuses_bad_n: false,
            ignores_n: true,
            ignores_last: true,
            link: Link::Missing,
            ..Self::distribution()
        }
    }

    /// GHCR: pages of 100, `n` honoured up to 10 000, a relative `Link`, oldest first so that the newest tags are on the last page, and
    /// `"tags": null` past the end (renovate#36103, oci-client's own tests).
    pub fn ghcr() -> Self {
        Self { order: TagOrder::OldestFirst, null_when_empty: true, etag: false, ..Self::paged(Some(100), Some(10_000)) }
    }

    /// Docker Hub: `n` up to 10 000, `Link`, roughly lexical (Renovate's source); pulls are counted in `ratelimit-*` headers. Its page
    /// without `n` is not documented: 100 here, so that nobody relies on getting everything.
    pub fn docker_hub() -> Self {
        Self::paged(Some(100), Some(10_000))
            .header("ratelimit-limit", "100;w=21600")
            .header("ratelimit-remaining", "99;w=21600")
            .header("docker-ratelimit-source", "192.0.2.1")
    }

    /// ECR: an `n` above 1000 answers 405 (Renovate's source, `ecr.ts`); `Link`.
    pub fn ecr() -> Self {
        Self { oversize: Oversize::Refuse(405), etag: false, ..Self::paged(Some(1000), Some(1000)) }
    }

    /// ACR: pages of 100, `Link` (from memory).
    pub fn acr() -> Self {
        Self::paged(Some(100), Some(1000))
    }

    /// Quay since 2024: lexical, `Link`, and 413 above the largest page, 100 by default
    /// ([quay#2884](https://github.com/quay/quay/pull/2884)).
    pub fn quay() -> Self {
        Self { oversize: Oversize::Refuse(413), etag: false, ..Self::paged(Some(100), Some(100)) }
    }

    /// Quay before: pages of 50, an opaque `next_page` in `Link`, and `last` ignored (the same issue).
    pub fn quay_before_2024() -> Self {
        Self {
            order: TagOrder::Unsorted,
            ignores_last: true,
            link: Link::NextPage,
            etag: false,
            ..Self::paged(Some(50), Some(100))
        }
    }

    /// GitLab with its metadata database: pages of 100, at most 1000, `Link`
    /// ([!98215](https://gitlab.com/gitlab-org/gitlab/-/merge_requests/98215)).
    pub fn gitlab() -> Self {
        Self { link: Link::Absolute, ..Self::paged(Some(100), Some(1000)) }
    }

    /// GitLab for a repository not yet moved to the database: like Distribution 2.8 (the same).
    pub fn gitlab_unmigrated() -> Self {
        Self::debian()
    }

    /// Harbor: everything unless `n` is given, then `Link`, without a largest page (source, `server/registry/util.go`).
    pub fn harbor() -> Self {
        Self::paged(None, None)
    }

    /// Artifactory with virtual repositories: the path in `Link` lacks the repository's first part and so leads nowhere, and its `last` is
    /// a number of tags (RTFACT-18971; [reported](https://github.com/renovatebot/renovate/issues/15030) with 7.46). Only what is said of
    /// `last` helps a client.
    pub fn artifactory() -> Self {
        Self { link: Link::LosesPrefix, ..Self::paged(None, Some(1000)) }
            .header("x-jfrog-version", "Artifactory/7.77.5 77705900")
            .header("x-artifactory-id", "0123456789abcdef")
    }

    /// Nexus groups: `n` is honoured, but no `Link` says that there is more
    /// ([nexus-public#117](https://github.com/sonatype/nexus-public/issues/117)).
    pub fn nexus() -> Self {
        Self { link: Link::Missing, ..Self::paged(None, None) }
    }

    /// Nexus at the port of a connector: an absolute `Link` to `/repository/…/v2/…`, which this port does not serve
    /// ([nexus-public#1011](https://github.com/sonatype/nexus-public/issues/1011)).
    pub fn nexus_connector() -> Self {
        Self { link: Link::InternalPath, ..Self::paged(None, None) }
    }

    /// Nexus behind a proxy that it does not know of: an absolute `Link` with a port that is not open.
    pub fn nexus_behind_proxy() -> Self {
        Self { link: Link::WrongPort, ..Self::paged(None, None) }
    }

    /// zot: sorted, everything unless `n` is given, a relative `Link`; a `last` that was deleted meanwhile answers 404 (source,
    /// [routes.go](https://github.com/project-zot/zot/blob/6d19b44/pkg/api/routes.go)).
    pub fn zot() -> Self {
        Self { refuses_unknown_last: true, refuses_bad_n: true, etag: false, ..Self::paged(None, None) }
    }

    /// Google's registries: one reply with all tags, and each manifest's times and tags in `manifest`
    /// ([ggcr](https://github.com/google/go-containerregistry/blob/3f4ff3c/pkg/v1/google/list.go)).
    pub fn google() -> Self {
        Self {
            has_manifests: true,
            ignores_n: true,
            ignores_last: true,
            link: Link::Missing,
            etag: false,
            ..Self::paged(None, None)
        }
    }
}

/// Changes to a dialect.
impl Dialect {
    /// Uses pages of this size: by default, and at most.
    #[must_use]
    pub fn page(mut self, tags: usize) -> Self {
        self.default_page = Some(tags);
        self.max_page = Some(tags);
        self
    }

    #[must_use]
    pub fn link(mut self, link: Link) -> Self {
        self.link = link;
        self
    }

    #[must_use]
    pub fn order(mut self, order: TagOrder) -> Self {
        self.order = order;
        self
    }

    /// Leaves `name` out of listings.
    #[must_use]
    pub fn without_name(mut self) -> Self {
        self.has_name = false;
        self
    }

    /// Leaves `Docker-Content-Digest` out of replies, `HEAD` included, and the `ETag` with it.
    #[must_use]
    pub fn without_digest_header(mut self) -> Self {
        self.digest_header = false;
        self.etag = false;
        self
    }

    /// Adds a header to every reply below `/v2/`.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Distribution v3.
impl Default for Dialect {
    fn default() -> Self {
        Self::distribution()
    }
}
