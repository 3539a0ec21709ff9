//! Which image a placeholder means, where it does not say so itself.
//!
//! In this order: the text before it in the same scalar (`repo:$(pin …)`), then its siblings in the same mapping. For Helm the mapping
//! is that of the merged values: see [`crate::values`].

use std::collections::BTreeMap;

use super::scans::{PlaceholderId, Scans};
use crate::image::{Reference, Repository, printable, split_tag};
use crate::yaml::{Kind, NodeId, Tree};

/// Which sibling keys may name an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Siblings {
    /// `registry` + `repository`, `repository`, `image`, `repo`, and `name` below a key `image`: values files and custom resources.
    Values,
    /// `newName`, `name`: an entry of a kustomization's `images`.
    Kustomize,
}

/// Why no image was found for a placeholder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageNotFound {
    /// Nothing that names an image stands where one was looked for.
    #[error("no image found: {0}")]
    Nothing(String),
    /// What stands there is no image name.
    #[error("`{text}` {place} is not an image name")]
    NotAnImage { text: String, place: String },
    /// The value is used beside several images.
    #[error("several images are meant: {}", .0.join(", "))]
    Several(Vec<String>),
}

impl ImageNotFound {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        "name the image in the placeholder, as in `$(pin ghcr.io/acme/web ~1.2)`".into()
    }
}

/// The image before a placeholder in the same scalar: the text up to its colon, or up to the `@` before a digest.
///
/// # Errors
///
/// [`ImageNotFound::NotAnImage`] when a colon stands there, but no image before it.
pub fn before(text: &str) -> Result<Option<Repository>, ImageNotFound> {
    let Some(head) = text.strip_suffix(':').or_else(|| text.strip_suffix('@')) else { return Ok(None) };
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':');
    let start = head.char_indices().rev().find(|(_, c)| !part(*c)).map_or(0, |(at, c)| at + c.len_utf8());
    let name = &head[start..];
    // A URL's scheme is no part of the name: `docker://ghcr.io/acme/web:$(pin …)`.
    let name = name.rsplit_once("//").map_or(name, |(_, name)| name);
    let name = if text.ends_with('@') { split_tag(name).0 } else { name };
    let place = "before the placeholder".to_owned();
    name.parse().map(Some).map_err(|_| ImageNotFound::NotAnImage { text: printable(head), place })
}

/// The image that the entries beside a placeholder name, if any.
///
/// `sibling` gives the text of a scalar with that key in the same mapping, and `own_key` is the key that the mapping is the value of: a
/// `name` names an image only below `image` or `sidecarImage`, and only with a `/`. `global_registry` is Helm's `global.imageRegistry`,
/// which takes the place of a `registry` when it is not empty, as in the charts that have both.
///
/// # Errors
///
/// [`ImageNotFound::NotAnImage`] when a sibling is there but names none.
pub fn siblings(
    keys: Siblings,
    own_key: Option<&str>,
    global_registry: Option<&str>,
    sibling: impl Fn(&str) -> Option<String>,
) -> Result<Option<Repository>, ImageNotFound> {
    let filled = |key: &str| sibling(key).filter(|text| !text.is_empty());
    let named = |key: &str| filled(key).map(|text| read(&text, &format!("in `{key}`")));
    let found = match keys {
        Siblings::Kustomize => named("newName").or_else(|| named("name")),
        Siblings::Values => {
            let is_image = own_key.is_some_and(|key| key == "image" || key.ends_with("Image"));
            let in_registry = |key: &str, path: String| match sibling("registry") {
                None => read_bare(&path, &format!("in `{key}`")),
                Some(own) => {
                    let registry = global_registry.filter(|text| !text.is_empty()).unwrap_or(&own);
                    let text = if registry.is_empty() { path } else { format!("{registry}/{path}") };
                    read_bare(&text, &format!("in `registry` and `{key}`"))
                }
            };
            let name = || filled("name").filter(|name| is_image && name.contains('/'));
            let repository = filled("repository").map(|path| in_registry("repository", path));
            let found = repository.or_else(|| named("image")).or_else(|| named("repo"));
            found.or_else(|| name().map(|path| in_registry("name", path)))
        }
    };
    found.transpose()
}

/// The image named beside a scalar in a tree.
///
/// # Errors
///
/// [`ImageNotFound`], with what was looked at.
pub fn beside(tree: &Tree<'_>, parents: &[Option<NodeId>], scalar: NodeId, keys: Siblings) -> Result<Repository, ImageNotFound> {
    let Some(mapping) = parents[scalar].filter(|parent| matches!(tree.node(*parent).kind, Kind::Mapping(_))) else {
        return Err(ImageNotFound::Nothing("the placeholder stands in a list, with no image before it".into()));
    };
    let sibling = |key: &str| {
        let value = tree.get(mapping, key).filter(|value| *value != scalar)?;
        tree.text(value).map(str::to_owned)
    };
    siblings(keys, own_key(tree, parents, mapping), None, sibling)?.ok_or_else(|| ImageNotFound::Nothing(looked_at(keys)))
}

/// The key whose value a mapping is.
fn own_key<'t>(tree: &'t Tree<'_>, parents: &[Option<NodeId>], mapping: NodeId) -> Option<&'t str> {
    let entries = tree.own_entries(parents[mapping]?);
    entries.iter().find(|(_, value)| *value == mapping).and_then(|(key, _)| tree.text(*key))
}

/// The image beside each placeholder of some texts.
pub fn beside_each(scans: &Scans<'_>) -> BTreeMap<PlaceholderId, Result<Repository, ImageNotFound>> {
    let mut found = BTreeMap::new();
    for (input, scan) in scans.iter() {
        let parents = scan.tree.parents();
        for (id, placeholder) in scan.placeholders_of(input) {
            found.insert(id, beside(&scan.tree, &parents, placeholder.scalar, Siblings::Values));
        }
    }
    found
}

/// Says which keys were looked for.
pub fn looked_at(keys: Siblings) -> String {
    match keys {
        Siblings::Values => "none stands before the placeholder, and none of `repository`, `image`, `repo` beside it".into(),
        Siblings::Kustomize => "neither `newName` nor `name` stands beside the placeholder".into(),
    }
}

/// Reads an image name without a tag: a chart puts the tag behind it, so that one with a tag would get two.
fn read_bare(text: &str, place: &str) -> Result<Repository, ImageNotFound> {
    text.parse().map_err(|_| ImageNotFound::NotAnImage { text: printable(text), place: place.to_owned() })
}

/// Reads an image name that may carry a tag or a digest, which does not count.
fn read(text: &str, place: &str) -> Result<Repository, ImageNotFound> {
    let name = text.parse::<Reference>().map(|reference| reference.repository);
    let name = name.or_else(|_| split_tag(text.split('@').next().unwrap_or_default()).0.parse());
    name.map_err(|_| ImageNotFound::NotAnImage { text: printable(text), place: place.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_before_the_colon_is_the_image() {
        let found = |text: &str| before(text).expect(text).map(|image| image.text().to_owned());
        assert_eq!(found("ghcr.io/a/b:").as_deref(), Some("ghcr.io/a/b"));
        assert_eq!(found("docker run --rm localhost:5000/a/b:").as_deref(), Some("localhost:5000/a/b"));
        assert_eq!(found("IMAGE=nginx:").as_deref(), Some("nginx"));
        assert_eq!(found("docker://ghcr.io/a/b:").as_deref(), Some("ghcr.io/a/b"));
        assert_eq!(found("ghcr.io/a/b@").as_deref(), Some("ghcr.io/a/b"));
        assert_eq!(found("localhost:5000/a/b:1.2@").as_deref(), Some("localhost:5000/a/b"));
        assert_eq!(found(""), None);
        assert_eq!(found("v"), None);
        assert_eq!(
            before("{{ x }}:").expect_err("a template").to_string(),
            "`{{ x }}` before the placeholder is not an image name"
        );
    }

    fn beside_tag(mapping: &str, keys: Siblings) -> Result<String, String> {
        let text = format!("a:\n- {mapping}\n");
        let tree = Tree::parse(&text).expect("YAML");
        let scalar = tree.nodes().find(|(id, _)| tree.text(*id) == Some("$(pin ~1)")).expect("a placeholder").0;
        beside(&tree, &tree.parents(), scalar, keys).map(|image| image.text().to_owned()).map_err(|error| error.to_string())
    }

    /// The keys beside a tag that name its image: see docs/placeholders.md.
    #[test]
    fn siblings_name_the_image() {
        for (mapping, image) in [
            ("{registry: ghcr.io, repository: a/b, tag: $(pin ~1)}", "ghcr.io/a/b"),
            ("{registry: '', repository: a/b, tag: $(pin ~1)}", "a/b"),
            ("{repository: quay.io/a/b, tag: $(pin ~1), image: x/y}", "quay.io/a/b"),
            ("{image: quay.io/a/b:1.2, tag: $(pin ~1)}", "quay.io/a/b"),
            ("{repo: quay.io/a/b, version: $(pin ~1)}", "quay.io/a/b"),
        ] {
            assert_eq!(beside_tag(mapping, Siblings::Values).as_deref(), Ok(image), "{mapping}");
        }
        for (key, mapping, image) in [
            ("image", "{name: quay.io/a/b, tag: $(pin ~1)}", Ok("quay.io/a/b")),
            ("sidecarImage", "{name: a/b, tag: $(pin ~1)}", Ok("a/b")),
            ("image", "{registry: quay.io, name: a/b, tag: $(pin ~1)}", Ok("quay.io/a/b")),
            ("image", "{repository: a/b, name: c/d, tag: $(pin ~1)}", Ok("a/b")),
            ("image", "{name: web, tag: $(pin ~1)}", Err(())),
            ("images", "{name: a/b, tag: $(pin ~1)}", Err(())),
        ] {
            let text = format!("{key}: {mapping}\n");
            let tree = Tree::parse(&text).expect("YAML");
            let scalar = tree.nodes().find(|(id, _)| tree.text(*id) == Some("$(pin ~1)")).expect("a placeholder").0;
            let found = beside(&tree, &tree.parents(), scalar, Siblings::Values);
            assert_eq!(found.as_ref().map(Repository::text).map_err(drop), image, "{text}");
        }
        assert_eq!(beside_tag("{name: a/b, newTag: $(pin ~1)}", Siblings::Kustomize).as_deref(), Ok("a/b"));
        assert_eq!(beside_tag("{name: app, newName: a/b, newTag: $(pin ~1)}", Siblings::Kustomize).as_deref(), Ok("a/b"));
    }

    #[test]
    fn nothing_is_guessed_from_a_name() {
        let error = beside_tag("{name: VERSION, value: $(pin ~1)}", Siblings::Values).expect_err("no image");
        assert_eq!(
            error,
            "no image found: none stands before the placeholder, and none of `repository`, `image`, `repo` beside it"
        );
        let error = beside_tag("{repository: 'a/b:1.0', tag: $(pin ~1)}", Siblings::Values).expect_err("a tag already");
        assert_eq!(error, "`a/b:1.0` in `repository` is not an image name");
        let error = beside_tag("{repository: '{{ .x }}', tag: $(pin ~1)}", Siblings::Values).expect_err("no image");
        assert_eq!(error, "`{{ .x }}` in `repository` is not an image name");
    }
}
