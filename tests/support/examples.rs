//! The images of the examples, as `examples/registry.json` lists them, put into a registry.

use serde_json::{Map, Value};

use super::driver::root;
use super::registry::{FakeRegistry, Image};

/// All examples' applications, with their directories.
pub const APPLICATIONS: [(&str, &str, [&str; 2]); 6] = [
    ("chat-api", "chat-api", ["chat-api", "chat-api"]),
    ("example-api", "example-api", ["example-api", "example-api"]),
    ("frontend-backend", "frontend-backend", ["frontend-backend", "frontend-backend"]),
    ("latest-by-digest", "latest-by-digest", ["latest-by-digest/overlays/dev", "latest-by-digest/overlays/prd"]),
    ("plain-manifests", "plain-manifests", ["plain-manifests/manifests", "plain-manifests/manifests"]),
    ("umbrella", "umbrella", ["umbrella", "umbrella"]),
];

/// Puts what is there at first into the registry.
pub fn fill(registry: &FakeRegistry) {
    push(registry, &read());
}

/// Pushes what comes later.
pub fn push_later(registry: &FakeRegistry) {
    push(registry, read()["later"].as_object().expect("an object"));
}

/// What Argo CD would tell a plugin of an example's application.
pub fn environment(example: &str, environment: &str) -> Vec<(String, String)> {
    let file = root().join("examples").join(example).join(format!("application-{environment}.yaml"));
    let text = std::fs::read_to_string(file).expect("the file is there");
    let manifest: Value = serde_yaml::from_str(&text).expect("YAML");
    let source = &manifest["spec"]["source"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    [
        ("ARGOCD_APP_NAME", text(&manifest["metadata"]["name"])),
        ("ARGOCD_APP_NAMESPACE", text(&manifest["spec"]["destination"]["namespace"])),
        ("ARGOCD_APP_SOURCE_PATH", text(&source["path"])),
        ("ARGOCD_APP_SOURCE_REPO_URL", text(&source["repoURL"])),
        ("ARGOCD_APP_PARAMETERS", source["plugin"]["parameters"].to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// The images of `examples/registry.json`.
pub fn images() -> Value {
    Value::Object(read())
}

fn read() -> Map<String, Value> {
    let text = std::fs::read_to_string(root().join("examples/registry.json")).expect("the file is there");
    serde_json::from_str(&text).expect("JSON")
}

/// Pushes images: their names with their tags, each a name or an object with the time of its build and maybe its platforms.
pub fn push(registry: &FakeRegistry, images: &Map<String, Value>) {
    for (image, tags) in images.iter().filter(|(image, _)| *image != "later") {
        let repository = image.split_once('/').expect("a registry").1;
        for entry in tags.as_array().expect("tags") {
            if let Some(tag) = entry.as_str() {
                registry.push(repository, tag);
                continue;
            }
            let text = |key: &str| entry[key].as_str().expect("text");
            let built = |platform: &str| Image::new().created(text("created")).platform(platform);
            match entry["platforms"].as_array() {
                None => registry.push_image(repository, text("tag"), built("linux/amd64")),
                Some(platforms) => {
                    let images = platforms.iter().map(|platform| built(platform.as_str().expect("text"))).collect();
                    registry.push_index(repository, text("tag"), images, true)
                }
            };
        }
    }
}
