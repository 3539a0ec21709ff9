//! The native door: Argo CD's plugin protocol on the plugin socket, in one process with a warm cache.
//!
//! Requests come in as streams of an archive, manifests go out. What Argo CD's own cmp-server does is done here
//! (`cmpserver/server.go`, `cmpserver/plugin/plugin.go`), but for the process of each render. Errors are short, free of secrets, and
//! have codes that do not make the controller retry the whole render: those are `ResourceExhausted` and `Unavailable`.

pub mod board;
pub mod init;
pub mod plugin;
pub mod proto;
pub mod receive;
pub mod shelf;
pub mod socket;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::application::{Application, PARAMETERS};
use crate::config::Config;
use crate::failure::{Failures, chain};
use crate::generate::{Generated, generate, survey};
use crate::process::Child;
use crate::registry::TagSource;
use crate::resolve::Resolver;
use crate::telemetry::{Metrics, Outcome};
use crate::workspace::archive::Bounds;
use crate::workspace::{ANY_DEPTH, Checkout};
use board::Board;
use plugin::Plugin;
use proto::config_management_plugin_service_server::ConfigManagementPluginService;
use proto::{
    AppStreamRequest, CheckPluginConfigurationResponse, ManifestResponse, ParameterAnnouncement, ParametersAnnouncementResponse,
    RepositoryResponse,
};
use receive::{Received, receive};
use shelf::Shelf;

/// Time kept back from the caller's deadline to send a useful error, as Argo CD's own server does.
const DEADLINE_MARGIN: Duration = Duration::from_millis(100);

/// Longest message of an error, in bytes: it lands in the Application's status.
const MAX_MESSAGE: usize = 6000;

/// Answers Argo CD.
pub struct Service<S> {
    plugin: Plugin,
    config: Config,
    resolver: Arc<Resolver<S>>,
    work_dir: PathBuf,
    shelf: Shelf,
    /// Renders at a time; the others wait in the order in which they came.
    renders: Semaphore,
    /// Archives that are unpacked at a time.
    unpacks: Semaphore,
    metrics: Arc<Metrics>,
    board: Arc<Board>,
}

impl<S: TagSource> Service<S> {
    #[expect(clippy::too_many_arguments, reason = "each is a part that the server is made of, said once")]
    /// A service that unpacks below `work_dir` and renders at most so many applications at a time.
    pub fn new(
        plugin: Plugin,
        config: Config,
        resolver: Arc<Resolver<S>>,
        work_dir: PathBuf,
        shelf: Shelf,
        at_once: usize,
        metrics: Arc<Metrics>,
        board: Arc<Board>,
    ) -> Self {
        Self {
            plugin,
            config,
            resolver,
            work_dir,
            shelf,
            renders: Semaphore::new(at_once),
            unpacks: Semaphore::new(at_once),
            metrics,
            board,
        }
    }

    async fn receive(&self, stream: Streaming<AppStreamRequest>) -> Result<Received, Status> {
        // A command of plugin.yaml may write where it runs: then nothing is shared.
        let runs_commands = !self.plugin.discover.command.is_empty() || !self.plugin.dynamic.is_empty();
        let shelf = (!runs_commands).then_some(&self.shelf);
        receive(stream, &self.work_dir, shelf, &self.unpacks, self.plugin.preserve_file_mode, Bounds::default()).await
    }

    /// Waits for a turn. The semaphore is fair.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, Status> {
        let _waiting = Waiting::new(&self.metrics);
        self.renders.acquire().await.map_err(|_| Status::cancelled("the server is going away"))
    }

    async fn manifests(&self, received: &Received) -> Result<Generated, Status> {
        let application = application(received)?;
        let checkout = checkout(received, &application)?;
        let _turn = self.turn().await?;
        let Config { tools, image_paths, .. } = &self.config;
        let started = Instant::now();
        let generated = generate(&checkout, &application, tools, image_paths, &self.resolver).await;
        let generated = generated.map_err(|failures| refused("error generating manifests", &failures))?;
        for note in &generated.notes {
            tracing::warn!(application = application.name, "{note}");
        }
        generated.log(&application.name, started);
        self.board.set(&application.name, &generated);
        Ok(generated)
    }

    /// Is the application one for this plugin? Follows Argo CD's `matchRepository`: the first way that is configured decides.
    async fn matches(&self, received: &Received) -> Result<bool, Status> {
        let dir = received.app_dir()?;
        let discover = &self.plugin.discover;
        if let Some(pattern) = &discover.file_name {
            return find(&dir, pattern, pattern.matches('/').count());
        }
        if let Some(pattern) = &discover.glob {
            let is_plain = !pattern.contains(['*', '?', '[', '{']);
            if is_plain && !dir.join(pattern).exists() {
                return Err(Status::failed_precondition(format!("match repository error: `{pattern}` does not exist")));
            }
            return find(&dir, pattern, ANY_DEPTH);
        }
        match discover.command.as_slice() {
            [] => Ok(false),
            words => Ok(self.command(words, &dir, received).await.is_ok_and(|output| !output.is_empty())),
        }
    }

    /// Runs a command of `plugin.yaml` in the application's directory, with our environment and the application's over it.
    async fn command(&self, words: &[String], dir: &Path, received: &Received) -> Result<Vec<u8>, Status> {
        let own = std::env::vars_os();
        let given = received.environment.iter().filter(|entry| !entry.name.is_empty());
        let child = Child {
            program: words[0].clone().into(),
            arguments: words[1..].iter().map(Into::into).collect(),
            directory: dir.to_owned(),
            environment: own.chain(given.map(|entry| (entry.name.clone().into(), entry.value.clone().into()))).collect(),
            deadline: self.config.tools.timeout,
            max_output: 1024 * 1024,
        };
        child.run().await.map(|output| output.stdout).map_err(|error| Status::failed_precondition(short(&chain(&error))))
    }

    /// What `plugin.yaml` announces, with the application's images and pins in place of the defaults.
    async fn announce(&self, received: &Received) -> Result<Vec<ParameterAnnouncement>, Status> {
        let mut all = Vec::new();
        if !self.plugin.dynamic.is_empty() {
            let output = self.command(&self.plugin.dynamic, &received.app_dir()?, received).await?;
            let read = plugin::announcements(&output);
            all = read.map_err(|error| {
                Status::failed_precondition(format!("error executing dynamic parameter output command: {error}"))
            })?;
        }
        all.extend(self.plugin.parameters.iter().cloned());
        let application = application(received)?;
        let checkout = checkout(received, &application)?;
        // What cannot be found out leaves the announcements as they are: the page that asks shall open.
        match survey(&checkout, &application, &self.config.tools, &self.resolver).await {
            Ok(pins) => {
                let pins_parameter = all.iter_mut().find(|parameter| parameter.name == "pins");
                if let Some(parameter) = pins_parameter.filter(|parameter| parameter.map.is_empty()) {
                    parameter.map = pins.into_iter().collect();
                }
            }
            Err(failures) => tracing::debug!(application = application.name, %failures, "the images are not announced"),
        }
        Ok(all)
    }
}

#[tonic::async_trait]
impl<S: TagSource + 'static> ConfigManagementPluginService for Service<S> {
    async fn generate_manifest(
        &self,
        request: Request<Streaming<AppStreamRequest>>,
    ) -> Result<Response<ManifestResponse>, Status> {
        let deadline = deadline(request.metadata());
        let received = self
            .receive(request.into_inner())
            .await
            .map_err(|status| within("generate manifest error receiving stream", &status))?;
        let started = Instant::now();
        let generated = before(deadline, self.manifests(&received)).await;
        match &generated {
            Ok(generated) => self.metrics.render(Outcome::Done, started.elapsed(), generated.stale()),
            Err(status) if status.code() == Code::DeadlineExceeded => {
                self.metrics.render(Outcome::Deadline, started.elapsed(), 0);
            }
            Err(status) => {
                tracing::error!(
                    application = received.variable("ARGOCD_APP_NAME"),
                    error = status.message(),
                    "the render failed"
                );
                self.metrics.render(Outcome::Failed, started.elapsed(), 0);
            }
        }
        let generated = generated?;
        // Argo CD splits each string into documents itself.
        Ok(Response::new(ManifestResponse { manifests: vec![generated.manifests], source_type: String::new() }))
    }

    async fn check_plugin_configuration(&self, _: Request<()>) -> Result<Response<CheckPluginConfigurationResponse>, Status> {
        let answer = CheckPluginConfigurationResponse {
            is_discovery_configured: self.plugin.discover.is_configured(),
            provide_git_creds: self.plugin.provide_git_creds,
        };
        Ok(Response::new(answer))
    }

    async fn match_repository(
        &self,
        request: Request<Streaming<AppStreamRequest>>,
    ) -> Result<Response<RepositoryResponse>, Status> {
        let deadline = deadline(request.metadata());
        let received = self.receive(request.into_inner()).await.map_err(|status| within("match repository error", &status))?;
        let is_supported = before(deadline, self.matches(&received)).await?;
        Ok(Response::new(RepositoryResponse { is_supported, is_discovery_enabled: self.plugin.discover.is_configured() }))
    }

    async fn get_parameters_announcement(
        &self,
        request: Request<Streaming<AppStreamRequest>>,
    ) -> Result<Response<ParametersAnnouncementResponse>, Status> {
        let deadline = deadline(request.metadata());
        let received = self.receive(request.into_inner()).await;
        let received = received.map_err(|status| within("parameters announcement error receiving stream", &status))?;
        let parameter_announcements = before(deadline, self.announce(&received)).await?;
        Ok(Response::new(ParametersAnnouncementResponse { parameter_announcements }))
    }
}

/// Counts a render that waits, also when its caller goes away.
struct Waiting<'a>(&'a Metrics);

impl<'a> Waiting<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.waiting.inc();
        Self(metrics)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.dec();
    }
}

fn application(received: &Received) -> Result<Application, Status> {
    Application::from_environment(|name| received.variable(name))
        .map_err(|error| refused("error generating manifests", &error.failures(PARAMETERS)))
}

fn checkout(received: &Received, application: &Application) -> Result<Checkout, Status> {
    let checkout = Checkout::within(received.root(), &received.app_dir()?);
    checkout.map_err(|error| refused(&format!("application `{}`", application.name), &Failures::from(&error)))
}

/// When the caller gives up, less the margin. The header is gRPC's: a number and a unit.
fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(number.checked_mul(3600)?),
        "M" => Duration::from_secs(number.checked_mul(60)?),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    };
    Instant::now().checked_add(timeout.saturating_sub(DEADLINE_MARGIN))
}

/// Works until the deadline. What is dropped then ends its children and removes its files.
async fn before<T>(deadline: Option<Instant>, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let Some(deadline) = deadline else { return work.await };
    match tokio::time::timeout_at(deadline.into(), work).await {
        Ok(result) => result,
        Err(_) => Err(Status::deadline_exceeded(
            "the render did not finish in the time that the caller gave: raise `controller.repo.server.timeout.seconds` of Argo CD",
        )),
    }
}

/// Does a file of the directory match a glob? `*` does not cross directories, `**` does.
fn find(dir: &Path, pattern: &str, depth: usize) -> Result<bool, Status> {
    let wrong = |error: &dyn std::fmt::Display| Status::failed_precondition(format!("match repository error: {error}"));
    let matcher =
        globset::GlobBuilder::new(pattern).literal_separator(true).build().map_err(|error| wrong(&error))?.compile_matcher();
    let checkout = Checkout::within(dir, dir).map_err(|error| wrong(&error))?;
    let mut found = false;
    checkout.files(Path::new(""), depth, &mut |path| found |= matcher.is_match(path)).map_err(|error| wrong(&error))?;
    Ok(found)
}

/// Failures that the user mends. The code makes nobody try again.
fn refused(what: &str, failures: &Failures) -> Status {
    Status::failed_precondition(short(&format!("{what}: {failures}")))
}

fn within(what: &str, status: &Status) -> Status {
    Status::new(status.code(), short(&format!("{what}: {}", status.message())))
}

/// A message that fits.
fn short(text: &str) -> String {
    match (0..=MAX_MESSAGE.min(text.len())).rev().find(|at| text.is_char_boundary(*at)) {
        Some(end) if end < text.len() => format!("{}…", &text[..end]),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_is_the_callers_less_a_margin() {
        let at = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().expect("a header"));
            deadline(&metadata).map(|deadline| deadline.saturating_duration_since(Instant::now()).as_millis())
        };
        // What Argo CD's client was seen to send.
        assert!(at("59998875u").is_some_and(|left| (59_000..59_899).contains(&left)));
        assert!(at("1M").is_some_and(|left| (59_000..=59_900).contains(&left)));
        assert_eq!(at("50m"), Some(0));
        for text in ["", "S", "5", "xS", "99999999999999999999H"] {
            assert_eq!(at(text), None, "{text}");
        }
    }

    #[test]
    fn messages_are_short() {
        assert_eq!(short("x"), "x");
        assert!(short(&"é".repeat(10_000)).len() <= MAX_MESSAGE + '…'.len_utf8());
    }
}
