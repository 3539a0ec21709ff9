//! The values that Helm will merge, to tell which image a placeholder in them means.
//!
//! Trees of values files go in, from the chart's defaults to the last `--set`; what comes out is the merged view and, for each
//! placeholder, the image that stands beside it *there*: an override file often holds `image.tag` alone. Merging follows Helm's
//! `CoalesceTables`: mappings merge, all else is replaced, `null` removes. Nothing is written back from here.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use granit_parser::ScalarStyle;

use crate::image::Repository;
use crate::placeholder::image::{self, ImageNotFound, Siblings};
use crate::placeholder::scans::PlaceholderId;
use crate::yaml::{Kind, NodeId, Tree};

/// Values that one merged view may hold, aliases expanded.
const MAX_VALUES: usize = 250_000;

/// As deep as values go: through aliases they may go on for ever.
const MAX_DEPTH: usize = 256;

/// Bytes of a text that count as much as an entry.
const ENTRY: usize = 64;

/// A value as Helm merges it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    #[default]
    Null,
    /// A scalar, with the placeholders in it.
    Scalar {
        text: String,
        sites: Vec<PlaceholderId>,
    },
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
}

/// The values are too many once aliases are expanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the merged values hold more than {MAX_VALUES} entries, or go deeper than {MAX_DEPTH}")]
pub struct TooManyValues;

/// What may still be read.
struct Budget {
    values: usize,
    depth: usize,
}

impl Budget {
    fn take(&mut self, values: usize) -> Result<(), TooManyValues> {
        self.values = self.values.checked_sub(values).ok_or(TooManyValues)?;
        Ok(())
    }
}

impl Value {
    /// The values of a file's first document, which is the one that Helm reads. `sites` gives the placeholders of each scalar.
    ///
    /// # Errors
    ///
    /// [`TooManyValues`], so that aliases of aliases cannot exhaust the memory.
    pub fn read(tree: &Tree<'_>, sites: &HashMap<NodeId, Vec<PlaceholderId>>) -> Result<Self, TooManyValues> {
        let mut budget = Budget { values: MAX_VALUES, depth: MAX_DEPTH };
        tree.roots.first().map_or(Ok(Self::Null), |root| Self::read_node(tree, *root, sites, &mut budget))
    }

    fn read_node(
        tree: &Tree<'_>,
        id: NodeId,
        sites: &HashMap<NodeId, Vec<PlaceholderId>>,
        budget: &mut Budget,
    ) -> Result<Self, TooManyValues> {
        budget.take(1)?;
        budget.depth = budget.depth.checked_sub(1).ok_or(TooManyValues)?;
        let value = Self::read_kind(tree, id, sites, budget);
        budget.depth += 1;
        value
    }

    fn read_kind(
        tree: &Tree<'_>,
        id: NodeId,
        sites: &HashMap<NodeId, Vec<PlaceholderId>>,
        budget: &mut Budget,
    ) -> Result<Self, TooManyValues> {
        let id = tree.follow(id);
        Ok(match &tree.node(id).kind {
            Kind::Scalar { value, style: ScalarStyle::Plain } if matches!(&**value, "" | "~" | "null" | "Null" | "NULL") => {
                Self::Null
            }
            Kind::Scalar { value, .. } => {
                let sites = sites.get(&id).map(Vec::as_slice).unwrap_or_default();
                budget.take(value.len() / ENTRY + sites.len())?;
                Self::Scalar { text: value.to_string(), sites: sites.to_vec() }
            }
            Kind::Sequence(items) => {
                Self::List(items.iter().map(|item| Self::read_node(tree, *item, sites, budget)).collect::<Result<_, _>>()?)
            }
            Kind::Mapping(entries) => {
                let mut map = BTreeMap::new();
                for (_, merged) in entries.iter().filter(|(key, _)| tree.is_merge_key(*key)) {
                    let sources = match &tree.node(tree.follow(*merged)).kind {
                        Kind::Sequence(items) => items.clone(),
                        _ => vec![*merged],
                    };
                    for source in sources {
                        if let Self::Map(inherited) = Self::read_node(tree, source, sites, budget)? {
                            for (key, value) in inherited {
                                map.entry(key).or_insert(value);
                            }
                        }
                    }
                }
                for (key, value) in entries.iter().filter(|(key, _)| !tree.is_merge_key(*key)) {
                    if let Some(name) = tree.text(*key) {
                        map.insert(name.to_owned(), Self::read_node(tree, *value, sites, budget)?);
                    }
                }
                Self::Map(map)
            }
            Kind::Alias(_) => Self::Null,
        })
    }

    /// Merges `over` into these values.
    pub fn merge(&mut self, over: Value) {
        match (self, over) {
            (Self::Map(base), Self::Map(over)) => {
                for (key, value) in over {
                    base.entry(key).or_default().merge(value);
                }
            }
            (base, over) => *base = over,
        }
    }

    /// Puts a dependency's values below its name.
    pub fn nested(self, name: &str) -> Self {
        Self::Map(BTreeMap::from([(name.to_owned(), self)]))
    }

    /// A value at a path as `helm --set` writes it: `image.tag`, `hosts[0].name`, `a\.b.c`.
    pub fn set(path: &str, text: &str, sites: Vec<PlaceholderId>) -> Self {
        let leaf = Self::Scalar { text: text.to_owned(), sites };
        Self::keys(path).into_iter().rev().fold(leaf, |value, key| value.nested(&key))
    }

    /// The keys of a path as `helm --set` writes it: at least one.
    pub fn keys(path: &str) -> Vec<String> {
        let mut keys = vec![String::new()];
        let mut chars = path.chars();
        while let Some(c) = chars.next() {
            match c {
                '\\' => keys.last_mut().expect("never empty").extend(chars.next()),
                '.' | '[' => keys.push(String::new()),
                ']' => {}
                c => keys.last_mut().expect("never empty").push(c),
            }
        }
        // Helm takes no more than thirty and says so.
        keys.truncate(MAX_DEPTH);
        keys
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Self::Map(map) => map.get(key),
            Self::List(items) => items.get(key.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// The value at a path of keys; for lists the number of the item.
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(self, |value, key| value.get(key))
    }

    /// The boolean at a path, as YAML 1.1 has them: Helm's parser does.
    pub fn flag(&self, path: &[&str]) -> Option<bool> {
        match self.at(path)?.text()?.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => Some(true),
            "false" | "no" | "off" | "n" => Some(false),
            _ => None,
        }
    }

    /// Removes the value at a path of keys.
    pub fn remove(&mut self, path: &[&str]) {
        match (self, path) {
            (Self::Map(map), [key]) => drop(map.remove(*key)),
            (Self::Map(map), [key, rest @ ..]) => {
                if let Some(value) = map.get_mut(*key) {
                    value.remove(rest);
                }
            }
            _ => {}
        }
    }

    /// For each placeholder that is still there after merging, the image beside it. One that is absent was overridden.
    pub fn images(&self) -> BTreeMap<PlaceholderId, Result<Repository, ImageNotFound>> {
        let mut found: BTreeMap<PlaceholderId, Vec<Result<Repository, ImageNotFound>>> = BTreeMap::new();
        self.collect(None, None, &mut found);
        found.into_iter().map(|(site, all)| (site, agree(all))).collect()
    }

    fn collect<'v>(
        &'v self,
        own_key: Option<&str>,
        global: Option<&'v str>,
        found: &mut BTreeMap<PlaceholderId, Vec<Result<Repository, ImageNotFound>>>,
    ) {
        match self {
            Self::Map(map) => {
                let own = self.at(&["global", "imageRegistry"]).and_then(Value::text).filter(|text| !text.is_empty());
                let global = global.or(own);
                for (name, value) in map {
                    let Self::Scalar { sites, .. } = value else {
                        value.collect(Some(name), global, found);
                        continue;
                    };
                    if sites.is_empty() {
                        continue;
                    }
                    let sibling = |key: &str| if key == name { None } else { map.get(key)?.text().map(str::to_owned) };
                    let image = image::siblings(Siblings::Values, own_key, global, sibling).and_then(|image| {
                        image.ok_or_else(|| {
                            ImageNotFound::Nothing(format!("{}, in the merged values", image::looked_at(Siblings::Values)))
                        })
                    });
                    sites.iter().for_each(|site| found.entry(*site).or_default().push(image.clone()));
                }
            }
            Self::List(items) => {
                for item in items {
                    if let Self::Scalar { sites, .. } = item {
                        let nothing = ImageNotFound::Nothing("the placeholder stands in a list, with no image before it".into());
                        sites.iter().for_each(|site| found.entry(*site).or_default().push(Err(nothing.clone())));
                    }
                    item.collect(None, global, found);
                }
            }
            Self::Null | Self::Scalar { .. } => {}
        }
    }
}

/// A value that is used in several places (an anchor) must mean the same image in each that names one.
fn agree(all: Vec<Result<Repository, ImageNotFound>>) -> Result<Repository, ImageNotFound> {
    let named: BTreeSet<&Repository> = all.iter().filter_map(|image| image.as_ref().ok()).collect();
    match named.len() {
        0 => all.into_iter().next().expect("a site is found with a result"),
        1 => Ok((*named.first().expect("there is one")).clone()),
        _ => Err(ImageNotFound::Several(named.into_iter().map(ToString::to_string).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placeholder::Scan;
    use crate::placeholder::scans::InputId;

    /// Reads files from the chart's defaults to the last one and merges them.
    fn merged(files: &[&str]) -> Value {
        let mut view = Value::default();
        for (number, text) in files.iter().enumerate() {
            view.merge(read(text, number));
        }
        view
    }

    fn read(text: &str, number: usize) -> Value {
        let mut sites: HashMap<NodeId, Vec<PlaceholderId>> = HashMap::new();
        match Scan::of(text).expect("YAML") {
            Some(scan) => {
                for (index, placeholder) in scan.placeholders.iter().enumerate() {
                    sites.entry(placeholder.scalar).or_default().push(id(number, index));
                }
                Value::read(&scan.tree, &sites).expect("few values")
            }
            None => Value::read(&Tree::parse(text).expect("YAML"), &sites).expect("few values"),
        }
    }

    fn id(number: usize, index: usize) -> PlaceholderId {
        PlaceholderId { input: InputId(number), index }
    }

    fn image(view: &Value, (number, index): (usize, usize)) -> Option<Result<String, String>> {
        let found = view.images().remove(&id(number, index))?;
        Some(found.map(|image| image.to_string()).map_err(|error| error.to_string()))
    }

    const TAG: &str = "image: {tag: $(pin ~1)}\n";

    #[test]
    fn the_repository_may_stand_in_another_file() {
        let view = merged(&["image: {repository: ghcr.io/acme/web, tag: ''}\n", TAG]);
        assert_eq!(image(&view, (1, 0)), Some(Ok("ghcr.io/acme/web".into())));
        let view = merged(&["image: {repository: ghcr.io/acme/web}\n", TAG, "image: {repository: mirror.io/web}\n"]);
        assert_eq!(image(&view, (1, 0)), Some(Ok("mirror.io/web".into())), "the last file wins");
    }

    #[test]
    fn a_dependency_brings_its_own_repository_under_its_alias() {
        let mut view = read("image: {registry: docker.io, repository: acme/cache}\n", 0).nested("cache");
        view.merge(read("cache: {image: {tag: $(pin ~7)}}\n", 1));
        assert_eq!(image(&view, (1, 0)), Some(Ok("docker.io/acme/cache".into())));
        view.merge(read("global: {imageRegistry: mirror.io}\n", 2));
        assert_eq!(image(&view, (1, 0)), Some(Ok("mirror.io/acme/cache".into())), "a global registry takes the registry's place");
    }

    #[test]
    fn parameters_and_null_count() {
        let mut view = merged(&["image: {repository: a/b}\n", TAG]);
        view.merge(Value::set("image.repository", "c/d", vec![]));
        assert_eq!(image(&view, (1, 0)), Some(Ok("docker.io/c/d".into())));
        view.merge(read("image: {repository: null}\n", 3));
        assert!(image(&view, (1, 0)).expect("still there").is_err());
        view.merge(Value::set("image.tag", "1.2.3", vec![]));
        assert_eq!(image(&view, (1, 0)), None, "an overridden placeholder is not asked for");
        let set = Value::set(r"a\.b.list[0].c", "x", vec![id(0, 0)]);
        assert_eq!(set.at(&["a.b", "list", "0", "c"]).and_then(Value::text), Some("x"));
    }

    #[test]
    fn anchors_and_merge_keys_lead_to_the_image() {
        let view = merged(&["tag: &t $(pin ~1)\nweb: {repository: a/b, tag: *t}\n"]);
        assert_eq!(image(&view, (0, 0)), Some(Ok("docker.io/a/b".into())));
        let view = merged(&["base: &b {tag: $(pin ~1)}\nweb: {<<: *b, repository: a/b}\n"]);
        assert_eq!(image(&view, (0, 0)), Some(Ok("docker.io/a/b".into())));
        let view = merged(&["tag: &t $(pin ~1)\nweb: {repository: a/b, tag: *t}\napi: {repository: a/c, tag: *t}\n"]);
        assert_eq!(image(&view, (0, 0)), Some(Err("several images are meant: docker.io/a/b, docker.io/a/c".into())));
    }

    #[test]
    fn aliases_of_aliases_are_bounded() {
        use std::fmt::Write as _;
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let items = vec![format!("*a{}", level - 1); 10].join(", ");
            writeln!(text, "a{level}: &a{level} [{items}]").expect("a string takes all");
        }
        let tree = Tree::parse(&text).expect("YAML");
        assert_eq!(Value::read(&tree, &HashMap::new()), Err(TooManyValues));
    }

    #[test]
    fn aliases_within_what_they_stand_for_are_bounded() {
        let long = format!("a: &a '{}'\nb: [{}]\n", "x".repeat(100_000), ["*a"; 10_000].join(", "));
        for text in ["a: &a [*a]\n", "a: &a {b: *a}\n", "a: &a {<<: *a}\n", &long] {
            let tree = Tree::parse(text).expect("YAML");
            assert_eq!(Value::read(&tree, &HashMap::new()), Err(TooManyValues));
        }
    }

    #[test]
    fn a_path_is_as_deep_as_values_go() {
        let mut value = &Value::set(&"a.".repeat(1_000_000), "x", vec![]);
        let mut depth = 0;
        while let Value::Map(map) = value {
            value = map.values().next().expect("one");
            depth += 1;
        }
        assert_eq!(depth, MAX_DEPTH);
    }
}
