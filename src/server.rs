//! The native mode: Argo CD's plugin protocol on the plugin socket, in one process with a warm cache.
//!
//! Requests come in as streams of an archive, manifests go out. What Argo CD's own cmp-server does is done here
//! (`cmpserver/server.go`, `cmpserver/plugin/plugin.go`), but for the process of each render. Errors are short, free of secrets, and
//! have codes that do not make the controller retry the whole render: those are `ResourceExhausted` and `Unavailable`.

pub mod admin;
pub mod archive_cache;
pub mod init;
pub mod metrics;
pub mod peer;
pub mod pin_report;
pub mod plugin;
pub mod proto;
pub mod request_log;
pub mod scheduler;
pub mod socket;
mod status;
pub mod upload;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::application::{Application, PARAMETERS};
use crate::clock::Clock;
use crate::config::Config;
use crate::events::{Asked, Events};
use crate::failure::chain;
use crate::generate::phases::PhaseTimer;
use crate::generate::{Generated, Generator};
use crate::pin::Pin;
use crate::process::Child;
use crate::render::{Tools, environment};
use crate::resolve::Resolver;
use crate::workspace::{ANY_DEPTH, Checkout, Workspace};
use metrics::Metrics;
use plugin::Plugin;
use proto::config_management_plugin_service_server::ConfigManagementPluginService;
use proto::{
    AppStreamRequest, CheckPluginConfigurationResponse, ManifestResponse, ParameterAnnouncement, ParametersAnnouncementResponse,
    RepositoryResponse,
};
use request_log::RequestLog;
use scheduler::RenderScheduler;
use status::{refused, short, within};
use upload::{Upload, Uploads};

/// Time kept back from the caller's deadline to send a useful error, as Argo CD's own server does.
const DEADLINE_MARGIN: Duration = Duration::from_millis(100);

/// Answers Argo CD.
pub struct Service {
    pub plugin: Plugin,
    pub config: Arc<Config>,
    pub resolver: Arc<Resolver>,
    pub uploads: Uploads,
    pub renders: RenderScheduler,
    pub metrics: Arc<Metrics>,
    pub events: Events,
}

impl Service {
    /// Receives a request until the deadline.
    async fn received(
        &self,
        deadline: Option<Instant>,
        request: Request<Streaming<AppStreamRequest>>,
        what: &str,
        whose: &mut String,
    ) -> Result<Upload, Status> {
        let received = before(deadline, self.uploads.receive(request.into_inner(), whose)).await;
        received.map_err(|status| within(what, &status))
    }

    /// Renders when its turn has come.
    async fn manifests(&self, received: &Upload, deadline: Option<Instant>, timer: &PhaseTimer) -> Result<Generated, Status> {
        timer.begin("wait");
        let (application, tenant) = (application(received)?, tenant(received));
        let (config, resolver) = (Arc::clone(&self.config), Arc::clone(&self.resolver));
        let (received, timer) = (received.clone(), timer.clone());
        let work = async move {
            timer.begin("prepare");
            let checkout = received.checkout()?;
            let generator = generator(&config, &resolver);
            Ok::<_, Status>(generator.generate(&checkout, &application, deadline, &timer).await?)
        };
        self.renders.run(deadline, &tenant, work).await.map_err(Status::from)?
    }

    /// Is the application one for this plugin? Follows Argo CD's `matchRepository`: the first way that is configured decides.
    async fn matches(&self, received: &Upload, deadline: Option<Instant>) -> Result<bool, Status> {
        let (discover, config) = (self.plugin.discover.clone(), Arc::clone(&self.config));
        let tenant = tenant(received);
        let received = received.clone();
        let work = async move {
            let checkout = received.checkout()?;
            if let Some(pattern) = &discover.file_name {
                return find(&checkout, pattern, pattern.matches('/').count());
            }
            if let Some(pattern) = &discover.glob {
                let is_plain = !pattern.contains(['*', '?', '[', '{']);
                if is_plain && !checkout.app_dir().join(pattern).exists() {
                    return Err(Status::failed_precondition(format!("match repository error: `{pattern}` does not exist")));
                }
                return find(&checkout, pattern, ANY_DEPTH);
            }
            match discover.command.as_slice() {
                [] => Ok(false),
                words => Ok(command(words, &checkout, &received, &config.tools).await.is_ok_and(|output| !output.is_empty())),
            }
        };
        self.renders.run(deadline, &tenant, work).await.map_err(Status::from)?
    }

    /// What `plugin.yaml` announces, with the application's images and pins in place of the defaults.
    async fn announce(&self, received: &Upload, deadline: Option<Instant>) -> Result<Vec<ParameterAnnouncement>, Status> {
        let (application, tenant) = (application(received)?, tenant(received));
        let (config, resolver) = (Arc::clone(&self.config), Arc::clone(&self.resolver));
        let (dynamic, received) = (self.plugin.dynamic.clone(), received.clone());
        let work = async move {
            let checkout = received.checkout()?;
            let mut announced = Vec::new();
            if !dynamic.is_empty() {
                let output = command(&dynamic, &checkout, &received, &config.tools).await?;
                let read = plugin::announcements(&output);
                announced = read.map_err(|error| {
                    Status::failed_precondition(format!("error executing dynamic parameter output command: {error}"))
                })?;
            }
            let images = generator(&config, &resolver).list_images(&checkout, &application).await;
            Ok::<_, Status>((announced, images, application))
        };
        let (mut all, images, application) = self.renders.run(deadline, &tenant, work).await.map_err(Status::from)??;
        all.extend(self.plugin.parameters.iter().cloned());
        // What cannot be found out leaves the announcements as they are: the page that asks shall open.
        match images {
            Ok(pins) => {
                let pins_parameter = all.iter_mut().find(|parameter| parameter.name == "pins");
                if let Some(parameter) = pins_parameter.filter(|parameter| parameter.map.is_empty()) {
                    parameter.map = pins.into_iter().collect();
                }
            }
            Err(error) => tracing::debug!(application = application.name, %error, "the images are not announced"),
        }
        Ok(all)
    }
}

#[tonic::async_trait]
impl ConfigManagementPluginService for Service {
    async fn generate_manifest(
        &self,
        request: Request<Streaming<AppStreamRequest>>,
    ) -> Result<Response<ManifestResponse>, Status> {
        let deadline = deadline(request.metadata());
        let mut log = RequestLog::open(&self.metrics);
        let whose = &mut log.application;
        let received = self.received(deadline, request, "generate manifest error receiving stream", whose).await;
        let generated = match &received {
            Ok(received) => {
                log.received(received);
                before(deadline, self.manifests(received, deadline, log.timer())).await
            }
            Err(status) => Err(status.clone()),
        };
        let application = log.close(&generated);
        let generated = generated?;
        let project = received.as_ref().map(tenant).unwrap_or_default();
        let pins = generated.pins.iter().map(Pin::report).collect();
        self.events.asked(&Asked { application, project, tool: generated.tool, at: Clock::default().now(), pins });
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
        let received = self.received(deadline, request, "match repository error", &mut String::new()).await?;
        let is_supported = before(deadline, self.matches(&received, deadline)).await?;
        Ok(Response::new(RepositoryResponse { is_supported, is_discovery_enabled: self.plugin.discover.is_configured() }))
    }

    async fn get_parameters_announcement(
        &self,
        request: Request<Streaming<AppStreamRequest>>,
    ) -> Result<Response<ParametersAnnouncementResponse>, Status> {
        let deadline = deadline(request.metadata());
        let what = "parameters announcement error receiving stream";
        let received = self.received(deadline, request, what, &mut String::new()).await?;
        let parameter_announcements = before(deadline, self.announce(&received, deadline)).await?;
        Ok(Response::new(ParametersAnnouncementResponse { parameter_announcements }))
    }
}

/// Runs a command of `plugin.yaml` in the application's directory, with the application's environment. It may look for anything in the
/// checkout, and call the programs of the system; it has no network.
async fn command(words: &[String], checkout: &Checkout, received: &Upload, tools: &Tools) -> Result<Vec<u8>, Status> {
    let internal = |error: &dyn std::error::Error| Status::internal(short(&chain(error)));
    checkout.extract_all().map_err(|error| internal(&error))?;
    let workspace = Workspace::create().map_err(|error| internal(&error))?;
    let home = workspace.home().map_err(|error| internal(&error))?;
    // As for Go: a path leads from the directory, a name from PATH.
    let program = if words[0].contains('/') { checkout.app_dir().join(&words[0]) } else { words[0].clone().into() };
    let given = received.environment.iter().filter(|entry| !entry.name.is_empty());
    let given = given.map(|entry| (entry.name.clone().into(), entry.value.clone().into()));
    let sandbox = tools.sandboxes.offline(&program).map_err(|error| internal(&error))?.with_programs();
    let child = Child {
        program,
        arguments: words[1..].iter().map(Into::into).collect(),
        directory: checkout.app_dir(),
        environment: environment(&home, &[]).into_iter().chain(given).collect(),
        input: Vec::new(),
        deadline: tools.timeout,
        max_output: 1024 * 1024,
        places: Vec::new(),
        sandbox: sandbox.executing(checkout.root()).writing(workspace.path()),
    };
    child.run().await.map(|output| output.stdout).map_err(|error| Status::failed_precondition(short(&chain(&error))))
}

fn generator<'a>(config: &'a Config, resolver: &'a Resolver) -> Generator<'a> {
    Generator { tools: &config.tools, image_paths: &config.image_paths, resolver }
}

/// The AppProject: what a request uses is charged to it.
fn tenant(received: &Upload) -> String {
    received.variable("ARGOCD_APP_PROJECT_NAME").unwrap_or_default()
}

fn application(received: &Upload) -> Result<Application, Status> {
    Application::from_environment(|name| received.variable(name)).map_err(|error| refused(&error.failures(PARAMETERS)))
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

/// Does a file of the application's directory match a glob? `*` does not cross directories, `**` does.
fn find(checkout: &Checkout, pattern: &str, depth: usize) -> Result<bool, Status> {
    let wrong = |error: &dyn std::fmt::Display| Status::failed_precondition(format!("match repository error: {error}"));
    let matcher = crate::render::glob(pattern, true).map_err(|error| wrong(&error))?;
    let mut found = false;
    let mut visit = |path: &Path| found |= matcher.is_match(path.strip_prefix(checkout.app()).unwrap_or(path));
    checkout.files(checkout.app(), depth, &mut visit).map_err(|error| wrong(&error))?;
    Ok(found)
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
}
