//! Kustomize, with the edits and arguments of Argo CD's `kustomize.Build` (`util/kustomize/kustomize.go`).
//!
//! Argo CD edits the application's kustomization in place; here that happens in a copy. What a kustomization reaches (bases,
//! components) is copied with it, so that loading restrictions see the same tree.

mod edits;
mod stand_ins;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::render_cache::Key;
use super::{Input, Inputs, RenderError, Rendered, Source, Targets, Tools, any_placeholder, environment, text};
use crate::application::Application;
use crate::egress::proxy::Proxy;
use crate::image::{Repository, printable};
use crate::placeholder::image::{ImageNotFound, Siblings, before, beside};
use crate::placeholder::scans::{InputId, PlaceholderId, Scans, Substituted};
use crate::placeholder::{Placeholder, Scan, is_mentioned};
use crate::process::Child;
use crate::process::sandbox::Sandbox;
use crate::workspace::{Checkout, Workspace, WorkspaceError, shown};
use crate::yaml::{Kind, Node, NodeId, Tree};
use stand_ins::{As, StandIns, Survivors, word};

/// Names of a kustomization, in the order in which Kustomize looks for them.
pub const NAMES: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// Lists that name what a kustomization builds upon.
const LISTS: [&str; 6] = ["resources", "bases", "components", "generators", "transformers", "validators"];

/// What Git may fetch remote bases by.
const PROTOCOLS: &str = "https:http:ssh";

/// Kustomizations that one application may reach.
const MAX_REACHED: usize = 1000;

/// A `kustomize build`, ready to run.
#[derive(Debug)]
pub struct Plan {
    checkout: Checkout,
    application: Application,
    pub(super) inputs: Inputs,
    /// The parameter's images with placeholders, with their inputs.
    images: BTreeMap<String, InputId>,
    /// Inputs that are files which kustomizations name: Kustomize may change what they hold.
    resources: BTreeSet<InputId>,
    /// The parameter's patches, if they hold placeholders.
    patches: Option<InputId>,
    /// May it be?
    changes: bool,
    /// Are there charts to inflate?
    inflates: bool,
    /// What is left of the placeholders in resources. None: that is not known.
    survivors: Option<Survivors>,
    stand_ins: StandIns,
    /// Directories of all kustomizations, the application's first.
    reached: Vec<PathBuf>,
    /// May something be named that has to be fetched?
    fetches: bool,
    /// Is everything known that the text is made from?
    is_local: bool,
}

impl Plan {
    /// Reads every kustomization file that the application's leads to.
    ///
    /// # Errors
    ///
    /// [`RenderError`], when there is none or a path leads out of the checkout.
    pub fn prepare(checkout: &Checkout, application: &Application, tools: &Tools) -> Result<Self, RenderError> {
        let mut plan = Self {
            checkout: checkout.clone(),
            application: application.clone(),
            inputs: Inputs::default(),
            images: BTreeMap::new(),
            resources: BTreeSet::new(),
            patches: None,
            changes: false,
            inflates: false,
            survivors: None,
            stand_ins: StandIns::default(),
            reached: Vec::new(),
            fetches: false,
            is_local: true,
        };
        // What the parameter adds builds upon more, too.
        let components = plan.present_components()?;
        plan.fetches = components.iter().any(|(_, path)| path.is_none());
        let mut waiting: Vec<PathBuf> = components.into_iter().filter_map(|(_, path)| path).collect();
        waiting.push(checkout.app().to_owned());
        let mut seen = BTreeSet::new();
        let mut resources: BTreeMap<PathBuf, String> = BTreeMap::new();
        while let Some(dir) = waiting.pop() {
            if !seen.insert(dir.clone()) {
                continue;
            }
            if seen.len() > MAX_REACHED {
                return Err(RenderError::invalid(format!("more than {MAX_REACHED} kustomizations are reached")));
            }
            checkout.extract_directory(&dir)?;
            let Some(name) = NAMES.iter().find(|name| checkout.root().join(&dir).join(name).is_file()) else {
                if dir == checkout.app() {
                    return Err(RenderError::invalid(format!("`{}` has no kustomization", shown(&dir))));
                }
                continue;
            };
            checkout.check_links(&dir)?;
            let path = dir.join(name);
            let text = checkout.read(&path)?;
            let tree = Tree::parse(&text).map_err(|source| RenderError::NotYaml { path: shown(&path), source })?;
            waiting.extend(plan.references(&dir, &tree, tools)?);
            let is_address = |node: &Node<'_>| matches!(&node.kind, Kind::Scalar { value, .. } if has_address(value));
            plan.fetches |= tree.nodes().any(|(_, node)| is_address(node));
            let generated = plan.generated(&dir, &tree)?;
            plan.resources_of(&dir, &tree, &mut resources);
            plan.changes |= tree.roots.iter().any(|root| changes_images(&tree, *root));
            plan.inflates |= tree.roots.iter().any(|root| tree.get(*root, "helmCharts").is_some());
            drop(tree);
            plan.inputs.add(shown(&path), text, Source::InPlace(path));
            plan.inputs.extend(generated);
            plan.reached.push(dir);
        }
        plan.fetches |= has_address(application.parameters.kustomize.patches.as_deref().unwrap_or_default());
        for (path, text) in resources {
            let name = shown(&path);
            // What a generator reads is that of it alone.
            if plan.inputs.iter().all(|(_, input)| input.name != name) {
                let source = if is_text(&text) { Source::Text(path) } else { Source::InPlace(path) };
                plan.resources.insert(plan.inputs.add(name, text, source));
            }
        }
        for image in application.parameters.kustomize.images.iter().filter(|image| is_mentioned(image)) {
            let name = format!("parameter `kustomize-images`, `{}`", printable(image));
            plan.images.insert(image.clone(), plan.inputs.add(name, image, Source::Parameter));
        }
        if let Some(text) = application.parameters.kustomize.patches.clone().filter(|text| is_mentioned(text)) {
            let input = plan.inputs.add("parameter `kustomize-patches`", text, Source::Named);
            plan.patches = Some(input);
            plan.resources.insert(input);
        }
        let options = &application.parameters.kustomize;
        plan.changes |= !options.images.is_empty() || options.patches.is_some() || !options.components.is_empty();
        // Without load restrictions, a file that a kustomization names by another file may stand anywhere.
        plan.is_local &= !plan.fetches && !is_unrestricted(tools);
        Ok(plan)
    }

    pub(super) fn checkout(&self) -> &Checkout {
        &self.checkout
    }

    /// See [`super::Plan::may_hold_more`].
    pub(super) fn may_hold_more(&self) -> bool {
        let is_data =
            |path: &Path| self.inputs.iter().any(|(_, input)| matches!(&input.source, Source::InPlace(own) if own == path));
        !self.is_local || self.reached.iter().any(|dir| any_placeholder(&self.checkout, dir, is_data))
    }

    /// Files with placeholders that a kustomization names, whatever for: resources, patches. Kustomize refuses itself what cannot be read.
    /// What the file of a generator names counts, too, and the values of a chart.
    fn resources_of(&self, dir: &Path, tree: &Tree<'_>, found: &mut BTreeMap<PathBuf, String>) {
        let text = |node: NodeId, key: &str| tree.get(node, key).and_then(|id| tree.text(id));
        for root in &tree.roots {
            for list in ["generators", "transformers"] {
                for file in tree.get(*root, list).map(|id| tree.items(id)).unwrap_or_default() {
                    let own = tree.text(*file).and_then(|file| self.checkout.resolve_path(dir, file).ok());
                    let own = own
                        .filter(|path| self.checkout.root().join(path).is_file())
                        .and_then(|path| self.checkout.read(&path).ok());
                    if let Some(own) = own
                        && let Ok(tree) = Tree::parse(&own)
                    {
                        self.named_by(dir, &tree, found);
                    }
                }
            }
            let globals = tree.get(*root, "helmGlobals");
            let home = globals.and_then(|globals| text(globals, "chartHome")).unwrap_or("charts");
            for chart in tree.get(*root, "helmCharts").map(|id| tree.items(id)).unwrap_or_default() {
                let name = text(*chart, "name").unwrap_or_default();
                let version = text(*chart, "version").unwrap_or_default();
                for place in [format!("{home}/{name}/values.yaml"), format!("{home}/{name}-{version}/{name}/values.yaml")] {
                    self.add_resource(dir, &place, found);
                }
            }
        }
        self.named_by(dir, tree, found);
    }

    fn named_by(&self, dir: &Path, tree: &Tree<'_>, found: &mut BTreeMap<PathBuf, String>) {
        for (_, node) in tree.nodes() {
            if let Kind::Scalar { value, .. } = &node.kind {
                // `name=path` in the lists of generators.
                let path = value.split_once('=').map_or(&**value, |(_, path)| path);
                self.add_resource(dir, value, found);
                if path.len() < value.len() {
                    self.add_resource(dir, path, found);
                }
            }
        }
    }

    fn add_resource(&self, dir: &Path, value: &str, found: &mut BTreeMap<PathBuf, String>) {
        if value.is_empty() || value.contains('\n') || Path::new(value).is_absolute() {
            return;
        }
        let Ok(path) = self.checkout.resolve_path(dir, value) else { return };
        if found.contains_key(&path) || !self.checkout.root().join(&path).is_file() {
            return;
        }
        if let Ok(text) = self.checkout.read(&path)
            && is_mentioned(&text)
        {
            found.insert(path, text);
        }
    }

    /// Finds out what is left of the placeholders in resources, where Kustomize may change them, by a build without tags. `targets` are
    /// what rules will replace, as for [`Targets::kustomize`], with any tag.
    pub(super) async fn probe(&mut self, targets: &Targets, tools: &Tools) {
        self.changes |= !targets.kustomize.is_empty();
        // What has to be fetched would be fetched twice.
        if self.resources.is_empty() || !self.changes || self.fetches {
            return;
        }
        let changed = self.with_words(|_, _| As::Like);
        let Ok(Rendered { text: built, .. }) = self.build(&changed, targets, tools).await else {
            // Something wants a real tag, or fails with any: all are asked for.
            self.changes = false;
            return;
        };
        let mut survivors = self.stand_ins.survivors(&built);
        let lost: BTreeSet<String> = self.words().into_iter().filter(|word| !survivors.contains_key(word)).collect();
        if !lost.is_empty() {
            let is_lost = |placeholder: &Placeholder| lost.contains(&word(placeholder));
            let other = self.with_words(|is_resource, own| if is_resource && is_lost(own) { As::Other } else { As::Like });
            // A chart may ask what only a real tag answers, such as whether it begins with `2`.
            let is_same = !self.inflates && self.build(&other, targets, tools).await.is_ok_and(|other| other.text == built);
            if !is_same {
                // Something of them is left: a hash, or a part.
                survivors.extend(lost.into_iter().map(|word| (word, BTreeSet::new())));
            }
        }
        self.survivors = Some(survivors);
    }

    /// All texts with a word in the place of each placeholder.
    fn with_words(&mut self, pick: impl Fn(bool, &Placeholder) -> As) -> Substituted {
        let mut changed = Substituted::new();
        for (id, input) in self.inputs.iter() {
            let is_resource = self.resources.contains(&id);
            let text = self.stand_ins.put(&input.text, input.is_raw(), |placeholder| Some(pick(is_resource, placeholder)));
            changed.extend(text.map(|text| (id, text)));
        }
        changed
    }

    /// The words of the placeholders in resources.
    fn words(&self) -> BTreeSet<String> {
        let mut words = BTreeSet::new();
        for input in self.resources.iter().map(|id| &self.inputs[*id]) {
            let scan = if input.is_raw() { Scan::raw(&input.text) } else { Scan::of(&input.text).ok().flatten() };
            words.extend(scan.iter().flat_map(|scan| &scan.placeholders).map(word));
        }
        words
    }

    /// Files with placeholders that generators read. Kustomize hashes them, and encodes those of Secrets, so that their placeholders
    /// must be gone before it runs.
    fn generated(&self, dir: &Path, tree: &Tree<'_>) -> Result<Vec<Input>, RenderError> {
        let lists = |entry: NodeId| {
            ["files", "envs"].into_iter().filter_map(move |list| tree.get(entry, list)).flat_map(|id| tree.items(id))
        };
        let generators = ["configMapGenerator", "secretGenerator"];
        let roots = tree.roots.iter().flat_map(|root| generators.iter().filter_map(|list| tree.get(*root, list)));
        let mut found: Vec<Input> = Vec::new();
        for entry in roots.flat_map(|list| tree.items(list)) {
            let files = lists(*entry).copied().chain(tree.get(*entry, "env")).filter_map(|id| tree.text(id));
            for file in files.map(|file| file.split_once('=').map_or(file, |(_, path)| path)) {
                // Kustomize refuses absolute paths itself; here they would count from the checkout's root.
                if Path::new(file).is_absolute() {
                    continue;
                }
                let path = match self.checkout.resolve_path(dir, file) {
                    // Kustomize itself refuses what is missing or leads out.
                    Err(WorkspaceError::Missing { .. } | WorkspaceError::Outside { .. }) => continue,
                    path => path?,
                };
                let text = match self.checkout.read(&path) {
                    Err(WorkspaceError::NotText { .. } | WorkspaceError::Missing { .. } | WorkspaceError::Io { .. }) => continue,
                    text => text?,
                };
                let at = dir.join(file);
                let source = if is_text(&text) { Source::Text(at) } else { Source::InPlace(at) };
                if text.contains("$(pin") && found.iter().all(|input| input.source != source) {
                    found.push(Input { name: shown(&path), text, source });
                }
            }
        }
        Ok(found)
    }

    /// Local directories that a kustomization builds upon. Files, and what must be fetched, are left to Kustomize.
    fn references(&mut self, dir: &Path, tree: &Tree<'_>, tools: &Tools) -> Result<Vec<PathBuf>, RenderError> {
        let mut found = Vec::new();
        for root in &tree.roots {
            // Go's JSON takes a field by any case.
            let other_case = tree.entries(*root).iter().filter_map(|(key, _)| tree.text(*key));
            let keys: BTreeSet<&str> = other_case.filter(|key| LISTS.contains(&folded(key).as_str())).chain(LISTS).collect();
            for list in keys {
                let is_plugin = ["generators", "transformers", "validators"].contains(&folded(list).as_str());
                for entry in tree.get(*root, list).map(|id| tree.items(id)).unwrap_or_default() {
                    // Objects may stand in place of a path.
                    let Some(path) = tree.text(*entry).filter(|path| !path.contains('\n')) else { continue };
                    // Kustomize may take such a path for a repository, also where a directory of that name stands.
                    let is_host =
                        path.split_once('/').is_some_and(|(host, _)| host.contains('.') && !host.trim_matches('.').is_empty());
                    let is_address = path.contains([':', '?']);
                    self.fetches |= is_host || is_address || (is_plugin && runs_programs(tools));
                    match self.checkout.resolve_path(dir, path) {
                        Ok(path) if self.checkout.root().join(&path).is_dir() => found.push(path),
                        // A plugin's own file may name addresses; what else it names is not looked for.
                        Ok(path) if is_plugin => {
                            self.is_local = false;
                            self.fetches |= self.checkout.read(&path).is_ok_and(|text| has_address(&text));
                        }
                        Ok(_) => {}
                        Err(WorkspaceError::Missing { .. }) => self.is_local = false,
                        // Too long for a path, for example.
                        Err(_) if is_address => {}
                        Err(source) => {
                            return Err(RenderError::File { what: format!("`{}`, `{list}`", shown(dir)), source });
                        }
                    }
                }
            }
        }
        Ok(found)
    }

    /// See [`super::Plan::images`].
    pub fn images(&self, scans: &Scans<'_>) -> BTreeMap<PlaceholderId, Result<Repository, ImageNotFound>> {
        let mut found = BTreeMap::new();
        for (input, scan) in scans.iter() {
            let is_resource = self.resources.contains(&input);
            let parents = scan.tree.parents();
            let images: BTreeSet<NodeId> = scan.tree.roots.iter().filter_map(|root| scan.tree.get(*root, "images")).collect();
            for (id, placeholder) in scan.placeholders_of(input) {
                let entry = parents[placeholder.scalar].and_then(|mapping| parents[mapping]);
                let keys = if entry.is_some_and(|list| images.contains(&list)) { Siblings::Kustomize } else { Siblings::Values };
                let here = || beside(&scan.tree, &parents, placeholder.scalar, keys);
                let image = match &self.survivors {
                    _ if !is_resource => here(),
                    // Not asked before what becomes of it is known.
                    None if self.changes => continue,
                    // What is not told here may be told by what is built.
                    None if is_unnamed(placeholder) && here().is_err() => continue,
                    None => here(),
                    Some(survivors) => match survivors.get(&word(placeholder)) {
                        // Overridden.
                        None => continue,
                        Some(images) if images.len() > 1 => {
                            Err(ImageNotFound::Several(images.iter().map(ToString::to_string).collect()))
                        }
                        Some(images) => images.first().cloned().map_or_else(here, Ok),
                    },
                };
                found.insert(id, image);
            }
        }
        found
    }

    /// See [`super::Plan::renamed`].
    pub fn renamed(&self, scans: &Scans<'_>) -> BTreeMap<PlaceholderId, Repository> {
        let Some(survivors) = &self.survivors else { return BTreeMap::new() };
        let mut found = BTreeMap::new();
        for (id, placeholder) in scans.placeholders().filter(|(id, _)| self.resources.contains(&id.input)) {
            let images = survivors.get(&word(placeholder));
            if let Some(image) = images.filter(|images| images.len() == 1).and_then(BTreeSet::first) {
                found.insert(id, image.clone());
            }
        }
        found
    }

    /// See [`super::Plan::run`].
    ///
    /// # Errors
    ///
    /// [`RenderError`].
    pub async fn run(&self, changed: &Substituted, targets: &Targets, tools: &Tools) -> Result<Rendered, RenderError> {
        let mut changed = changed.clone();
        let mut stand_ins = self.stand_ins.clone();
        // What is overridden must have the form of an image for that, and half a placeholder must not stay of it. What could not be
        // asked yet comes back behind Kustomize.
        let is_known = self.survivors.is_some();
        let is_behind = |placeholder: &Placeholder| matches!(before(&placeholder.before), Ok(Some(_)));
        for id in &self.resources {
            let input = &self.inputs[*id];
            let text = changed.get(id).unwrap_or(&input.text);
            let pick = |placeholder: &Placeholder| match is_known {
                true => Some(As::Like),
                false => is_behind(placeholder).then_some(As::Word),
            };
            if let Some(text) = stand_ins.put(text, input.is_raw(), pick) {
                changed.insert(*id, text);
            }
        }
        let built = self.build(&changed, targets, tools).await?;
        let restored = stand_ins.restore(built.text);
        if stand_ins::is_left(&restored) {
            let what = "a placeholder in a file of the kustomization stands in base64 where it cannot be resolved";
            let hint = Some("name the file in the kustomization's own `configMapGenerator` or `secretGenerator`".to_owned());
            return Err(RenderError::Invalid { what: what.to_owned(), hint });
        }
        Ok(Rendered { text: restored, ..built })
    }

    /// Builds from substituted texts.
    async fn build(&self, changed: &Substituted, targets: &Targets, tools: &Tools) -> Result<Rendered, RenderError> {
        let mut workspace = Workspace::create()?;
        let edits = self.edits(changed, targets)?;
        let substituted = self.patches.and_then(|place| changed.get(&place));
        let patches = substituted.or(self.application.parameters.kustomize.patches.as_ref());
        let options = &tools.kustomize_build_options;
        let writes = options.iter().any(|option| option.starts_with("--enable-"));
        let reaches_further = writes || is_unrestricted(tools);
        // Kustomize unpacks charts beside the kustomization: never in the checkout, which others may be reading.
        let is_copied = writes || !changed.is_empty() || !edits.is_empty() || patches.is_some();
        let root = if is_copied { workspace.root() } else { self.checkout.root().to_owned() };
        if reaches_further {
            self.checkout.extract_all()?;
        }
        let key = if writes { None } else { self.key(changed, &edits, tools, &workspace) };
        let recalled = key.and_then(|key| tools.render_cache.as_ref()?.get(&key));
        if let Some(text) = recalled {
            return Ok(Rendered { text, is_cached: true });
        }
        if is_copied {
            // Without load restrictions a kustomization may name any file of the checkout, and charts may stand anywhere.
            if reaches_further {
                workspace.copy_linked(&self.checkout, Path::new(""))?;
            }
            for dir in &self.reached {
                workspace.copy_linked(&self.checkout, dir)?;
            }
            for (id, text) in changed {
                if let Source::InPlace(path) | Source::Text(path) = &self.inputs[*id].source {
                    workspace.write(path, text)?;
                }
            }
        }
        let app = root.join(self.checkout.app());
        let home = workspace.home()?;
        let (before, after): (Vec<_>, Vec<_>) = edits.into_iter().partition(|edit| edit[2] != "component");
        // Edits change the copy alone.
        let editing = tools.sandboxes.offline(&tools.kustomize)?.writing(workspace.path());
        for edit in before {
            self.child(tools, edit, app.clone(), &home, editing.clone()).run().await?;
        }
        if let Some(patches) = patches {
            edits::add_patches(&app, patches)?;
        }
        for edit in after {
            self.child(tools, edit, app.clone(), &home, editing.clone()).run().await?;
        }
        let mut arguments: Vec<OsString> = vec!["build".into(), app.into_os_string()];
        arguments.extend(tools.kustomize_build_options.iter().map(OsString::from));
        if tools.kustomize_build_options.iter().any(|option| option.starts_with("--enable-helm")) {
            let options = &self.application.parameters.kustomize;
            let version = options.kube_version.clone().unwrap_or_else(|| self.application.kube_version.clone());
            if !version.is_empty() {
                arguments.extend(["--helm-kube-version".into(), version.into()]);
            }
            let versions = if options.api_versions.is_empty() { &self.application.api_versions } else { &options.api_versions };
            arguments.extend(versions.iter().flat_map(|version| [OsString::from("--helm-api-versions"), version.into()]));
        }
        let sandbox = self.sandbox(tools, &root, &workspace, writes).await?;
        let text = text(self.child(tools, arguments, root, &home, sandbox).run().await?.stdout)?;
        if let (Some(cache), Some(key)) = (&tools.render_cache, key) {
            cache.keep(key, &text);
        }
        Ok(Rendered { text, is_cached: false })
    }

    /// What the text is made from, if all of it is known.
    fn key(&self, changed: &Substituted, edits: &[Vec<OsString>], tools: &Tools, workspace: &Workspace) -> Option<[u8; 32]> {
        let patches = self.application.parameters.kustomize.patches.as_deref().unwrap_or_default();
        if !self.is_local || tools.render_cache.is_none() {
            return None;
        }
        let mut key = Key::new(&tools.kustomize, &self.checkout, workspace.path())?;
        edits.iter().for_each(|edit| key.add_words(edit.iter().map(OsString::as_os_str)));
        key.add_words(tools.kustomize_build_options.iter().map(OsStr::new));
        key.add(patches.as_bytes());
        self.inputs.with(changed).for_each(|text| key.add(text.as_bytes()));
        Some(key.finish())
    }

    /// What `kustomize build` may do: reach a filtering proxy if there may be something to fetch, and nothing else.
    async fn sandbox(&self, tools: &Tools, root: &Path, workspace: &Workspace, writes: bool) -> Result<Sandbox, RenderError> {
        let mut sandbox = if self.fetches {
            let proxy = Proxy::start(Arc::clone(&tools.egress), Some(tools.sandboxes.for_git()))
                .await
                .map_err(|error| RenderError::Proxy(error.into()))?;
            tools.sandboxes.git(&tools.kustomize, Arc::new(proxy))?
        } else {
            tools.sandboxes.offline(&tools.kustomize)?
        };
        sandbox = sandbox.reading(root).reading(workspace.path());
        if writes || self.fetches {
            sandbox = sandbox.writing(workspace.path());
        }
        if tools.kustomize_build_options.iter().any(|option| option.starts_with("--enable-helm")) {
            sandbox = sandbox.running(&self.helm(tools));
        }
        if runs_programs(tools) {
            sandbox = sandbox.with_programs().executing(root);
        }
        Ok(sandbox)
    }

    /// The Helm that Kustomize will run.
    fn helm(&self, tools: &Tools) -> PathBuf {
        let option = tools.kustomize_build_options.iter().find_map(|option| option.strip_prefix("--helm-command="));
        option.map_or_else(|| "helm".into(), PathBuf::from)
    }

    fn child(&self, tools: &Tools, arguments: Vec<OsString>, directory: PathBuf, home: &Path, sandbox: Sandbox) -> Child {
        let variables = self.application.variables();
        // An address may not be a directory of this machine, which is what `file` is to Git.
        let variables = variables.into_iter().map(|(name, value)| (name, value.into()));
        let variables: Vec<(&str, OsString)> = variables.chain([("GIT_ALLOW_PROTOCOL", PROTOCOLS.into())]).collect();
        Child {
            program: tools.kustomize.clone(),
            arguments,
            directory,
            environment: environment(home, &variables),
            input: Vec::new(),
            deadline: tools.timeout,
            max_output: tools.max_output,
            places: Vec::new(),
            sandbox,
        }
    }
}

/// May a kustomization change what its resources hold? All but these fields may.
fn changes_images(tree: &Tree<'_>, root: NodeId) -> bool {
    const OTHERS: [&str; 17] = [
        "apiVersion",
        "bases",
        "buildMetadata",
        "commonAnnotations",
        "commonLabels",
        "configMapGenerator",
        "generatorOptions",
        "kind",
        "labels",
        "metadata",
        "namePrefix",
        "nameSuffix",
        "namespace",
        "replicas",
        "resources",
        "secretGenerator",
        "sortOptions",
    ];
    tree.entries(root).iter().any(|(key, _)| tree.text(*key).is_none_or(|key| !OTHERS.contains(&key)))
}

/// Does neither a placeholder nor the text before it name an image?
fn is_unnamed(placeholder: &Placeholder) -> bool {
    placeholder.names_no_image() && !matches!(before(&placeholder.before), Ok(Some(_)))
}

/// Is a file to be read as one text? It is no YAML, or holds placeholders in comments, which those see who take it as a text.
fn is_text(text: &str) -> bool {
    let count = |scan: Option<Scan<'_>>| scan.map_or(0, |scan| scan.placeholders.len() + scan.errors.len());
    match Scan::of(text) {
        Ok(scan) => count(scan) != count(Scan::raw(text)),
        Err(_) => true,
    }
}

/// A field's name as Go's JSON compares it.
fn folded(name: &str) -> String {
    // Upper case first: two letters outside ASCII are lower-case forms of ASCII's.
    name.to_uppercase().to_lowercase()
}

/// May kustomizations name programs that Kustomize runs?
fn runs_programs(tools: &Tools) -> bool {
    let options = &tools.kustomize_build_options;
    options.iter().any(|option| ["--enable-exec", "--enable-alpha-plugins"].iter().any(|flag| option.starts_with(flag)))
}

/// Did the operator switch load restrictions off?
fn is_unrestricted(tools: &Tools) -> bool {
    tools.kustomize_build_options.iter().any(|option| option.ends_with("LoadRestrictionsNone"))
}

/// May a text name something to fetch? Any path of a kustomization may be an address, wherever it stands.
fn has_address(text: &str) -> bool {
    ["://", "git@", "git::"].iter().any(|mark| text.contains(mark))
}
