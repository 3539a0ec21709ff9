//! The answers of a registry in which nothing goes wrong, to pulls and to pushes.

use axum::body::Bytes;

use super::content::digest;
use super::dialect::Dialect;
use super::http::{Address, Call, Reply, encode};
use super::image::OCI_INDEX;
use super::lock;
use super::server::{Settings, State};

impl State {
    pub(super) fn answer(&self, settings: &Settings, call: &Call) -> Reply {
        match (call.request.method.as_str(), &call.address) {
            (_, Address::Token) => settings.auth.give_token(&self.tokens, call),
            ("GET" | "HEAD", Address::Ping) => Reply::json(200, &serde_json::json!({})),
            ("GET" | "HEAD", Address::Tags { repository }) => match lock(&self.content).repositories.get(repository) {
                Some(held) => settings.dialect.list(&self.host, repository, held, &call.query),
                None => Reply::unknown_repository(repository),
            },
            ("GET" | "HEAD", Address::Manifest { repository, reference }) => {
                self.manifest(&settings.dialect, repository, reference, call)
            }
            ("GET" | "HEAD", Address::Blob { repository, digest }) => {
                self.blob(settings, repository, digest, &call.request.method)
            }
            ("GET" | "HEAD", Address::Object { digest }) => self.object(digest, call),
            (method, Address::Manifest { repository, reference }) => self.change_manifest(method, repository, reference, call),
            (method, Address::Upload { repository, id }) => self.upload(method, repository, id, call),
            _ => Reply::error(404, "UNSUPPORTED", "the operation is unsupported"),
        }
    }

    fn manifest(&self, dialect: &Dialect, repository: &str, reference: &str, call: &Call) -> Reply {
        let content = lock(&self.content);
        let Some(held) = content.repositories.get(repository) else { return Reply::unknown_repository(repository) };
        let Some((digest, manifest)) = held.manifest(reference) else {
            return Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown");
        };
        // Distribution knows no lists, no `W/` and no `*` here, takes the digest without quotes, and sends no header with a 304.
        let known = call.request.header("if-none-match").is_some_and(|text| text.trim_matches('"') == digest);
        if dialect.etag && known {
            return Reply::new(304);
        }
        // Distribution looks for the very name: `*/*` is not enough.
        if dialect.needs_accept && manifest.media_type.starts_with("application/vnd.oci.") {
            let accepted = call.request.headers.iter().filter(|(name, _)| name == "accept");
            let mut accepted =
                accepted.flat_map(|(_, value)| value.split(',')).map(|part| part.split(';').next().unwrap_or("").trim());
            if !accepted.any(|part| part == manifest.media_type) {
                let kind = if manifest.media_type == OCI_INDEX { "index" } else { "manifest" };
                let message = format!("OCI {kind} found, but accept header does not support OCI {kind}s");
                return Reply::error(404, "MANIFEST_UNKNOWN", &message);
            }
        }
        let mut reply = Reply::new(200).header("content-type", &manifest.media_type).body(manifest.bytes.clone());
        if dialect.digest_header {
            reply = reply.header("docker-content-digest", digest);
        }
        if dialect.etag {
            reply = reply.header("etag", format!("\"{digest}\""));
        }
        reply
    }

    fn blob(&self, settings: &Settings, repository: &str, digest: &str, method: &str) -> Reply {
        let found = lock(&self.content).repositories.get(repository).and_then(|held| held.blobs.get(digest).cloned());
        let Some(bytes) = found else { return Reply::error(404, "BLOB_UNKNOWN", "blob unknown to registry") };
        if let Some((url, storage)) = &settings.storage
            && method == "GET"
        {
            lock(&storage.content).objects.insert(digest.to_owned(), bytes);
            let location = format!("{url}/objects/{digest}?X-Amz-Expires=1200&X-Amz-Signature=0123456789abcdef");
            return Reply::new(307).header("location", location);
        }
        served(digest, bytes)
    }

    /// Answers for storage like S3, which refuses a signed address and a header together.
    fn object(&self, digest: &str, call: &Call) -> Reply {
        if call.request.authorization.is_some() {
            let reply = Reply::new(400).header("content-type", "application/xml");
            return reply.body("<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>");
        }
        match lock(&self.content).objects.get(digest) {
            Some(bytes) => Reply::new(200).header("content-type", "binary/octet-stream").body(bytes.clone()),
            None => Reply::new(404).header("content-type", "application/xml").body("<Error><Code>NoSuchKey</Code></Error>"),
        }
    }

    fn change_manifest(&self, method: &str, repository: &str, reference: &str, call: &Call) -> Reply {
        let mut content = lock(&self.content);
        match method {
            "PUT" => {
                let is_digest = reference.contains(':');
                if is_digest && reference != digest(&call.body) {
                    return Reply::error(400, "DIGEST_INVALID", "provided digest did not match uploaded content");
                }
                let media_type = call.request.header("content-type").unwrap_or_default();
                let tag = (!is_digest).then_some(reference);
                let digest = content.push_manifest(repository, tag, media_type, call.body.to_vec());
                Reply::new(201)
                    .header("location", format!("/v2/{repository}/manifests/{digest}"))
                    .header("docker-content-digest", digest)
            }
            "DELETE" if content.delete_tag(repository, reference) || content.delete_manifest(repository, reference) => {
                Reply::new(202)
            }
            "DELETE" => Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
            _ => Reply::error(405, "UNSUPPORTED", "the operation is unsupported"),
        }
    }

    /// Takes blobs in one request, in two, or in pieces, and mounts them from other repositories
    /// ([pushing blobs](https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#pushing-blobs)).
    fn upload(&self, method: &str, repository: &str, id: &str, call: &Call) -> Reply {
        let mut content = lock(&self.content);
        let location = |id: &str| format!("/v2/{repository}/blobs/uploads/{}", encode(id));
        let progress = |status: u16, id: &str, length: usize| {
            let reply = Reply::new(status).header("location", location(id)).header("docker-upload-uuid", id);
            reply.header("range", format!("0-{}", length.saturating_sub(1)))
        };
        let stored = |digest: &str| {
            let reply = Reply::new(201).header("location", format!("/v2/{repository}/blobs/{digest}"));
            reply.header("docker-content-digest", digest)
        };
        let mismatch = || Reply::error(400, "DIGEST_INVALID", "provided digest did not match uploaded content");
        if id.is_empty() {
            if method != "POST" {
                return Reply::error(405, "UNSUPPORTED", "the operation is unsupported");
            }
            if let (Some(wanted), Some(from)) = (call.query.get("mount"), call.query.get("from"))
                && let Some(bytes) = content.repositories.get(from).and_then(|held| held.blobs.get(wanted).cloned())
            {
                content.repository(repository).blobs.insert(wanted.to_owned(), bytes);
                return stored(wanted);
            }
            if let Some(wanted) = call.query.get("digest") {
                if wanted != digest(&call.body) {
                    return mismatch();
                }
                return stored(&content.push_blob(repository, call.body.to_vec()));
            }
            let id = format!("upload-{:06}", content.next_serial());
            content.uploads.insert(id.clone(), Vec::new());
            return progress(202, &id, 0);
        }
        let Some(mut bytes) = content.uploads.remove(id) else {
            return Reply::error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
        };
        match method {
            "GET" | "PATCH" => {
                bytes.extend_from_slice(if method == "PATCH" { &call.body } else { &[] });
                let length = bytes.len();
                content.uploads.insert(id.to_owned(), bytes);
                progress(if method == "PATCH" { 202 } else { 204 }, id, length)
            }
            "PUT" => {
                bytes.extend_from_slice(&call.body);
                if call.query.get("digest") != Some(digest(&bytes).as_str()) {
                    return mismatch();
                }
                stored(&content.push_blob(repository, bytes))
            }
            "DELETE" => Reply::new(204),
            _ => Reply::error(405, "UNSUPPORTED", "the operation is unsupported"),
        }
    }
}

fn served(digest: &str, bytes: Bytes) -> Reply {
    let reply = Reply::new(200).header("content-type", "application/octet-stream").header("docker-content-digest", digest);
    reply.body(bytes)
}
