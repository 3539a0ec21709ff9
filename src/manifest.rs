//! Rendered manifests: split into documents, find the images, rewrite them.
//!
//! Text in, text out. Only the characters of image references are replaced; comments, order and layout stay as the tool wrote them.
//! Where Kubernetes has a pod template is known from k8s-openapi's types; in other resources (Argo Rollouts, Workflows, Knative) pod
//! templates are known by their shape.

pub mod sightings;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use granit_parser::ScalarStyle;
use k8s_openapi::Resource;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Pod, PodTemplate, ReplicationController};

use crate::image::{Reference, Repository};
use crate::placeholder::{quote, splice};
use crate::yaml::{self, Kind, NodeId, Tree, YamlError};

/// Lists of containers, by the names that Kubernetes and Argo Workflows give them.
const CONTAINER_LISTS: [&str; 4] = ["containers", "initContainers", "ephemeralContainers", "sidecars"];

/// Single containers, in Argo Workflows' templates.
const CONTAINERS: [&str; 2] = ["container", "script"];

/// Kinds whose content is data, whatever it looks like.
const DATA: [&str; 3] = ["ConfigMap", "Secret", "CustomResourceDefinition"];

/// A further place of an image, by the operator's choice: a kind and a path such as `spec.image` or `spec.agents[].image`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePath {
    kind: String,
    path: Vec<String>,
}

impl std::str::FromStr for ImagePath {
    type Err = String;

    /// Reads `KIND:dotted.path`, with `[]` behind a key for each item of a list.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not KIND:PATH, as in `Prometheus:spec.image` or `Fleet:spec.agents[].image`");
        let (kind, path) = text.split_once(':').ok_or_else(wrong)?;
        let path: Vec<String> = path.replace("[]", ".[]").split('.').map(str::to_owned).collect();
        if kind.is_empty() || path.iter().any(String::is_empty) {
            return Err(wrong());
        }
        Ok(Self { kind: kind.to_owned(), path })
    }
}

/// An image in a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The scalar's bytes in the text, with its quotes.
    pub span: Range<usize>,
    /// Its decoded text, without the white space around it.
    pub text: String,
    /// Is there any?
    pub is_padded: bool,
    /// Does it stand in a pod of Kubernetes' own kinds? Elsewhere another program may read it first.
    pub is_in_pod: bool,
    style: ScalarStyle,
}

/// A document's bytes in its text, with its leading `---` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub range: Range<usize>,
    /// How many lines stand above it.
    pub above: usize,
}

/// The documents of a text.
pub fn documents(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let (mut start, mut above) = (0, 0);
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let is_separator =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if is_separator && offset > start {
            documents.push(Document { range: start..offset, above });
            (start, above) = (offset, number);
        }
        offset += line.len();
    }
    if start < text.len() {
        documents.push(Document { range: start..text.len(), above });
    }
    documents
}

/// All images of one or more documents, in the order of the text.
///
/// # Errors
///
/// When the text is not YAML.
pub fn images(text: &str, further: &[ImagePath]) -> Result<Vec<Image>, YamlError> {
    let tree = Tree::parse(text)?;
    let mut search = Search { tree: &tree, found: BTreeMap::new(), is_in_pod: false, seen: HashMap::new(), further };
    for root in &tree.roots {
        search.object(*root, 4);
    }
    let image = |(_, (id, is_in_pod)): (usize, (NodeId, bool))| match &tree.node(id).kind {
        Kind::Scalar { value, style } if !value.trim().is_empty() => {
            let (span, text) = (tree.node(id).span.clone(), value.trim().to_owned());
            Some(Image { span, is_padded: text != **value, text, is_in_pod, style: *style })
        }
        _ => None,
    };
    Ok(search.found.into_iter().filter_map(image).collect())
}

/// Where an image or its tag probably stands, also in resources that are not known: the values of all keys `image`, `…Image`, `tag`,
/// `version` and `digest`, by position.
pub fn values_of_image_keys(text: &str) -> Vec<(usize, String)> {
    let Ok(tree) = Tree::parse(text) else { return Vec::new() };
    let kind = |root: &NodeId| tree.get(*root, "kind").and_then(|id| tree.text(id)).unwrap_or_default();
    if tree.roots.iter().any(|root| DATA.contains(&kind(root)) || kind(root).ends_with("List")) {
        return Vec::new();
    }
    let entries = tree.nodes().flat_map(|(id, _)| tree.own_entries(id));
    let values = entries.filter(|(key, _)| {
        tree.text(*key).is_some_and(|key| ["image", "tag", "version", "digest"].contains(&key) || key.ends_with("Image"))
    });
    values.filter_map(|(_, value)| Some((tree.node(*value).span.start, tree.text(*value)?.to_owned()))).collect()
}

struct Search<'s> {
    tree: &'s Tree<'s>,
    /// By position, so that an anchor used twice counts once; with [`Image::is_in_pod`].
    found: BTreeMap<usize, (NodeId, bool)>,
    is_in_pod: bool,
    /// What was searched, and how deep from there: aliases of aliases lead to the same nodes over and over.
    seen: HashMap<(Step, NodeId), usize>,
    further: &'s [ImagePath],
}

/// What a node is searched for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Object,
    Shape,
}

impl Search<'_> {
    /// Is there more to find at a node than the search before found?
    fn is_new(&mut self, step: Step, node: NodeId, depth: usize) -> bool {
        let seen = self.seen.entry((step, self.tree.follow(node))).or_default();
        let is_new = depth > *seen;
        *seen = depth.max(*seen);
        is_new
    }

    /// An object, or a `List` of objects down to the given depth.
    fn object(&mut self, root: NodeId, depth: usize) {
        if !self.is_new(Step::Object, root, depth + 1) {
            return;
        }
        let text = |key| self.tree.get(root, key).and_then(|id| self.tree.text(id)).unwrap_or_default();
        let (api_version, kind) = (text("apiVersion").to_owned(), text("kind").to_owned());
        if kind.ends_with("List") && depth > 0 {
            if let Some(items) = self.tree.get(root, "items") {
                self.tree.items(items).iter().for_each(|item| self.object(*item, depth - 1));
            }
            return;
        }
        if let Some(path) = pod_spec(&api_version, &kind) {
            if let Some(spec) = self.tree.at(root, path) {
                self.is_in_pod = true;
                self.pod(spec);
                self.is_in_pod = false;
            }
        } else if !DATA.contains(&kind.as_str()) {
            self.by_shape(root, 64);
        }
        for further in self.further.iter().filter(|further| further.kind == kind) {
            self.path(root, &further.path);
        }
    }

    fn pod(&mut self, spec: NodeId) {
        for list in CONTAINER_LISTS {
            self.containers(spec, list);
        }
        for volume in self.tree.get(spec, "volumes").map(|id| self.tree.items(id)).unwrap_or_default() {
            self.image(self.tree.at(*volume, &["image", "reference"]));
        }
    }

    fn containers(&mut self, parent: NodeId, list: &str) {
        for container in self.tree.get(parent, list).map(|id| self.tree.items(id)).unwrap_or_default() {
            self.image(self.tree.get(*container, "image"));
        }
    }

    fn by_shape(&mut self, node: NodeId, depth: usize) {
        if !self.is_new(Step::Shape, node, depth) {
            return;
        }
        for (key, value) in self.tree.entries(node) {
            let name = self.tree.text(*key).unwrap_or_default();
            if CONTAINER_LISTS.contains(&name) {
                self.tree.items(*value).iter().for_each(|container| self.image(self.tree.get(*container, "image")));
            } else if CONTAINERS.contains(&name) {
                self.image(self.tree.get(*value, "image"));
            }
            self.by_shape(*value, depth - 1);
        }
        self.tree.items(node).iter().for_each(|item| self.by_shape(*item, depth - 1));
    }

    fn path(&mut self, node: NodeId, path: &[String]) {
        match path {
            [] => self.image(Some(node)),
            [key, rest @ ..] if key == "[]" => self.tree.items(node).iter().for_each(|item| self.path(*item, rest)),
            [key, rest @ ..] => {
                if let Some(value) = self.tree.get(node, key) {
                    self.path(value, rest);
                }
            }
        }
    }

    fn image(&mut self, node: Option<NodeId>) {
        if let Some(id) = node.map(|id| self.tree.follow(id)) {
            self.found.entry(self.tree.node(id).span.start).or_insert((id, self.is_in_pod));
        }
    }
}

/// Where a kind of Kubernetes keeps its pod's specification.
fn pod_spec(api_version: &str, kind: &str) -> Option<&'static [&'static str]> {
    const TEMPLATE: &[&str] = &["spec", "template", "spec"];
    fn is<K: Resource>(api_version: &str, kind: &str) -> bool {
        K::API_VERSION == api_version && K::KIND == kind
    }
    let of = (api_version, kind);
    match of {
        (a, k) if is::<Pod>(a, k) => Some(&["spec"]),
        (a, k) if is::<PodTemplate>(a, k) => Some(&["template", "spec"]),
        (a, k) if is::<CronJob>(a, k) => Some(&["spec", "jobTemplate", "spec", "template", "spec"]),
        (a, k)
            if is::<Deployment>(a, k)
                || is::<StatefulSet>(a, k)
                || is::<DaemonSet>(a, k)
                || is::<ReplicaSet>(a, k)
                || is::<ReplicationController>(a, k)
                || is::<Job>(a, k) =>
        {
            Some(TEMPLATE)
        }
        _ => None,
    }
}

/// Is there an image of this repository?
pub fn mentions(text: &str, repository: &Repository) -> bool {
    let name = repository.path().rsplit('/').next().unwrap_or_default();
    let is_it = |image: &Image| image.text.parse::<Reference>().is_ok_and(|reference| reference.repository == *repository);
    let mut parts = documents(text).into_iter().map(|document| &text[document.range]).filter(|text| text.contains(name));
    parts.any(|text| images(text, &[]).is_ok_and(|images| images.iter().any(is_it)))
}

/// Gives every image of a repository its tag: `pins` are repositories with what follows their name, such as `:1.2` or `:1.2@sha256:…`.
/// Images that are among `settled` already have the tag that they shall have.
///
/// The registry and repository stay as they are spelled. Documents that don't mention a repository are not even read.
///
/// # Errors
///
/// When a document that mentions a repository is not YAML: the line counts within the whole text.
pub fn rewrite(
    text: &str,
    pins: &[(&Repository, String)],
    settled: &[Reference],
    further: &[ImagePath],
) -> Result<String, YamlError> {
    let mut edits = Vec::new();
    let names: Vec<&str> = pins.iter().map(|(repository, _)| repository.path().rsplit('/').next().unwrap_or_default()).collect();
    for Document { range, above } in documents(text) {
        let content = &text[range.clone()];
        if !names.iter().any(|name| content.contains(name)) {
            continue;
        }
        let found = images(content, further).map_err(|error| {
            let line = error.line + above;
            YamlError { line, ..error }
        })?;
        for image in found {
            let Ok(reference) = image.text.parse::<Reference>() else { continue };
            let Some(pin) = pins.iter().position(|(repository, _)| **repository == reference.repository) else { continue };
            if settled.contains(&reference) {
                continue;
            }
            let value = format!("{}{}", reference.repository.text(), pins[pin].1);
            let source = &content[image.span.clone()];
            let replaced = match image.style {
                ScalarStyle::Plain if !yaml::reads_as_string(&value) => quote(&value),
                ScalarStyle::Plain => value,
                _ => source.replacen(&image.text, &value, 1),
            };
            if replaced != source {
                edits.push((range.start + image.span.start..range.start + image.span.end, replaced));
            }
        }
    }
    Ok(splice(text, 0, &edits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{DaemonSetSpec, DeploymentSpec, ReplicaSetSpec, StatefulSetSpec};
    use k8s_openapi::api::batch::v1::{CronJobSpec, JobSpec, JobTemplateSpec};
    use k8s_openapi::api::core::v1::{
        Container, EphemeralContainer, ImageVolumeSource, PodSpec, PodTemplateSpec, ReplicationControllerSpec, Volume,
    };

    fn pod() -> PodSpec {
        PodSpec {
            containers: vec![Container { image: Some("a/main:1".into()), ..Default::default() }],
            init_containers: Some(vec![Container { image: Some("a/init:1".into()), ..Default::default() }]),
            ephemeral_containers: Some(vec![EphemeralContainer { image: Some("a/debug:1".into()), ..Default::default() }]),
            volumes: Some(vec![Volume {
                image: Some(ImageVolumeSource { reference: Some("a/volume:1".into()), ..Default::default() }),
                ..Default::default()
            }]),
            ..Default::default()
        }
    }

    fn template() -> PodTemplateSpec {
        PodTemplateSpec { spec: Some(pod()), ..Default::default() }
    }

    #[test]
    fn aliases_of_aliases_are_searched_once() {
        let mut text = "kind: Own\nm0: &m0 {image: a/b}\n".to_owned();
        for number in 1..=60 {
            let below = number - 1;
            text += &format!("m{number}: &m{number} {{x: *m{below}, y: *m{below}, container: *m0}}\n");
        }
        let spans = images(&text, &[]).expect("YAML").into_iter().map(|image| image.text);
        assert_eq!(spans.collect::<Vec<_>>(), ["a/b"]);
        let ring = format!("--- &r\nkind: List\nitems: [{}]\n", ["*r"; 200].join(", "));
        assert_eq!(images(&ring, &[]), Ok(vec![]));
    }

    /// The types say where the images are; the table must find each of them.
    #[test]
    fn images_are_found_in_every_kind_with_a_pod() {
        let t = template();
        let job = JobSpec { template: t.clone(), ..Default::default() };
        let all: Vec<String> = [
            serde_json::to_string(&Pod { spec: Some(pod()), ..Default::default() }),
            serde_json::to_string(&PodTemplate { template: Some(t.clone()), ..Default::default() }),
            serde_json::to_string(&Deployment {
                spec: Some(DeploymentSpec { template: t.clone(), ..Default::default() }),
                ..Default::default()
            }),
            serde_json::to_string(&StatefulSet {
                spec: Some(StatefulSetSpec { template: t.clone(), ..Default::default() }),
                ..Default::default()
            }),
            serde_json::to_string(&DaemonSet {
                spec: Some(DaemonSetSpec { template: t.clone(), ..Default::default() }),
                ..Default::default()
            }),
            serde_json::to_string(&ReplicaSet {
                spec: Some(ReplicaSetSpec { template: Some(t.clone()), ..Default::default() }),
                ..Default::default()
            }),
            serde_json::to_string(&ReplicationController {
                spec: Some(ReplicationControllerSpec { template: Some(t.clone()), ..Default::default() }),
                ..Default::default()
            }),
            serde_json::to_string(&Job { spec: Some(job.clone()), ..Default::default() }),
            serde_json::to_string(&CronJob {
                spec: Some(CronJobSpec {
                    job_template: JobTemplateSpec { spec: Some(job), ..Default::default() },
                    ..Default::default()
                }),
                ..Default::default()
            }),
        ]
        .into_iter()
        .collect::<Result<_, _>>()
        .expect("objects serialize");
        for object in &all {
            let mut found: Vec<String> = images(object, &[]).expect("JSON is YAML").into_iter().map(|image| image.text).collect();
            found.sort();
            assert_eq!(found, ["a/debug:1", "a/init:1", "a/main:1", "a/volume:1"], "{object}");
        }
        let list = format!("{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{}]}}", all.join(","));
        assert_eq!(images(&list, &[]).expect("JSON is YAML").len(), 4 * all.len());
    }

    fn found(text: &str, further: &[&str]) -> Vec<String> {
        let further: Vec<ImagePath> = further.iter().map(|text| text.parse().expect("a path")).collect();
        images(text, &further).expect("YAML").into_iter().map(|image| image.text).collect()
    }

    #[test]
    fn images_are_found_by_shape_in_custom_resources() {
        let rollout = "apiVersion: argoproj.io/v1alpha1\nkind: Rollout\nspec:\n  template:\n    spec:\n      containers:\n      - image: a/b:1\n";
        assert_eq!(found(rollout, &[]), ["a/b:1"]);
        let workflow = "apiVersion: argoproj.io/v1alpha1\nkind: Workflow\nspec:\n  templates:\n  - container: {image: a/c:1}\n  - script: {image: a/s:1, source: x}\n    sidecars: [{image: a/d:1}]\n";
        assert_eq!(found(workflow, &[]), ["a/c:1", "a/s:1", "a/d:1"]);
        let knative =
            "apiVersion: serving.knative.dev/v1\nkind: Service\nspec: {template: {spec: {containers: [{image: a/k:1}]}}}\n";
        assert_eq!(found(knative, &[]), ["a/k:1"]);
    }

    #[test]
    fn data_is_not_searched_and_further_paths_are() {
        let map = "kind: ConfigMap\ndata: {containers: [{image: a/b:1}]}\n";
        assert!(found(map, &[]).is_empty());
        let prometheus = "kind: Prometheus\nspec: {image: a/p:1, agents: [{image: a/q:1}, {image: a/r:1}]}\n";
        assert_eq!(found(prometheus, &["Prometheus:spec.image", "Prometheus:spec.agents[].image"]), ["a/p:1", "a/q:1", "a/r:1"]);
        assert!("Prometheus".parse::<ImagePath>().is_err() && "K:a..b".parse::<ImagePath>().is_err());
    }

    #[test]
    fn only_the_tags_of_the_repository_change() {
        let text = "# Source: x\n---\napiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: \"docker.io/library/nginx:1\" # why\n  - image: &i nginx\n  - image: *i\n  - image: 'other/nginx:1'\n---\n{{ not YAML\n---\nkind: X\n";
        let nginx: Repository = "nginx".parse().expect("an image");
        let unused: Repository = "a/b".parse().expect("an image");
        let pins = [(&nginx, ":1.10".into()), (&unused, ":2".into())];
        assert_eq!(
            rewrite(text, &pins, &[], &[]).expect("YAML where it matters"),
            text.replace("docker.io/library/nginx:1", "docker.io/library/nginx:1.10").replace("&i nginx", "&i nginx:1.10")
        );
        let settled = ["nginx:1".parse().expect("a reference")];
        assert_eq!(rewrite(text, &pins, &settled, &[]).expect("YAML"), text.replace("&i nginx", "&i nginx:1.10"));
        let error = rewrite("kind: X\n---\nnginx: [\n", &[(&nginx, ":1".into())], &[], &[]).expect_err("no YAML");
        assert!(error.line >= 3, "{error}");
    }

    #[test]
    fn documents_are_split_at_their_markers() {
        let text = "a: 1\n---\nb: |\n  ---\n--- # c\n---x\n";
        let all = documents(text);
        let parts: Vec<&str> = all.iter().map(|document| &text[document.range.clone()]).collect();
        assert_eq!(all.iter().map(|document| document.above).collect::<Vec<_>>(), [0, 1, 4]);
        assert_eq!(parts, ["a: 1\n", "---\nb: |\n  ---\n", "--- # c\n---x\n"]);
        assert_eq!(parts.concat(), text);
    }
}
