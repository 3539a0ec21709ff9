//! `pinion serve`: the native server.

pub mod tasks;

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use futures::FutureExt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tonic::transport::Server;

use super::{Outcome, configured, resolver};
use crate::config;
use crate::events::{Events, Listener};
use crate::failure::{Failure, Failures, chain};
use crate::metrics::Hits;
use crate::process::pool::{Counts, Limits, Pool};
use crate::process::sandbox::{Mode, Sandboxes};
use crate::process::{Runner, which};
use crate::registry::{Client, RegistriesConfig};
use crate::render::Tools;
use crate::render::render_cache::RenderCache;
use crate::resolve::Resolver;
use crate::server::admin::Admin;
use crate::server::archive_cache::ArchiveCache;
use crate::server::metrics::Metrics;
use crate::server::pin_report::PinReport;
use crate::server::plugin::Plugin;
use crate::server::proto::DESCRIPTOR;
use crate::server::proto::config_management_plugin_service_server::ConfigManagementPluginServiceServer;
use crate::server::scheduler::RenderScheduler;
use crate::server::socket::{Socket, connections};
use crate::server::upload::Uploads;
use crate::server::{Service, init, peer};
use crate::workspace::archive::Bounds;
use tasks::{Task, Tasks};

/// Time for running renders to end after a SIGTERM. Kubernetes gives 30 s by default.
const DRAIN: Duration = Duration::from_secs(25);

/// Bytes of an archive that may be under way: with HTTP/2's own 64 KiB a client waits for us again and again.
const WINDOW: u32 = 1 << 20;

/// Calls at a time on one connection, further ones wait. Together they fit into its window, so that one that is not read holds up no other.
const STREAMS: u32 = 32;

/// How often registries.conf is looked at.
const REREAD: Duration = Duration::from_secs(5);

/// Serve Argo CD natively, in place of its argocd-cmp-server
///
/// One process on the plugin socket, with the cache warm in memory: the sidecar's command is then `pinion serve` instead of
/// /var/run/argocd/argocd-cmp-server. Reads the same plugin.yaml. On SIGTERM it waits up to 25 s for running renders, then ends.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Directory of plugin.yaml
    #[arg(long, value_name = "DIR", default_value = "/home/argocd/cmp-server/config")]
    config_dir_path: PathBuf,

    /// Directory of the plugin sockets
    #[arg(long, env = "ARGOCD_PLUGINSOCKFILEPATH", value_name = "DIR", default_value = "/home/argocd/cmp-server/plugins")]
    socket_dir: PathBuf,

    /// Directory for archives and files of renders. Its folder `_cmp_server` is emptied at start [default: the system's directory for
    /// temporary files]
    #[arg(long, env = "ARGOCD_CMP_WORKDIR", value_name = "DIR")]
    work_dir: Option<PathBuf>,

    /// Maximum size of a gRPC message in MiB. Argo CD uses the same limit
    #[arg(long, env = "ARGOCD_GRPC_MAX_SIZE_MB", value_name = "MIB", default_value_t = 100, value_parser = at_least_one)]
    max_message_mb: usize,

    /// Maximum number of renders at a time. The others wait in order [default: twice the processors]
    #[arg(long, env = "PINION_RENDERS_AT_ONCE", value_name = "N", value_parser = at_least_one)]
    renders_at_once: Option<usize>,

    /// Maximum number of cached archives, for the next request with the same bytes; 0 disables the cache
    #[arg(long, env = "PINION_KEEP_ARCHIVES", value_name = "N", default_value_t = 16)]
    keep_archives: usize,

    /// Maximum size of cached archives in the work directory, in bytes
    #[arg(long, env = "PINION_KEEP_ARCHIVE_BYTES", value_name = "BYTES", default_value_t = 2 << 30)]
    keep_archive_bytes: u64,

    /// Maximum size of an unpacked archive, in bytes
    #[arg(long, env = "PINION_MAX_ARCHIVE_BYTES", value_name = "BYTES", default_value_t = Bounds::default().bytes)]
    max_archive_bytes: u64,

    /// Maximum number of files, directories and links in an archive
    #[arg(long, env = "PINION_MAX_ARCHIVE_ENTRIES", value_name = "N", default_value_t = Bounds::default().entries)]
    max_archive_entries: usize,

    /// Maximum size of cached rendered text in the work directory, compressed, in bytes; 0 disables the cache
    #[arg(long, env = "PINION_RENDER_CACHE_BYTES", value_name = "BYTES", default_value_t = 256 << 20)]
    render_cache_bytes: u64,

    /// Keep Helm processes running between renders, if the Helm program is helm-worker. `false` starts a process for each render
    #[arg(long, env = "PINION_HELM_WORKERS", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    helm_workers: bool,

    /// Address of the admin port: /healthz, /readyz, /metrics, and /api/v1/pins (for loopback, or with `--api-token`)
    #[arg(long, env = "PINION_ADMIN_ADDRESS", value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    admin_address: SocketAddr,

    /// Token for /api from other hosts, sent as `Authorization: Bearer …` [default: only loopback may read]
    #[arg(long, env = "PINION_API_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    api_token: Option<String>,

    #[command(flatten)]
    config: config::Raw,
}

impl Arguments {
    /// Serves until a signal.
    ///
    /// # Errors
    ///
    /// When plugin.yaml, the socket or the port cannot be used, and when a background task ends.
    pub async fn run(self) -> anyhow::Result<Outcome> {
        if std::process::id() == 1 {
            return init::run().await.map(|()| Outcome::Done).context("the server below the init process failed");
        }
        tune_allocator();
        raise_descriptors();
        let plugin = Plugin::load(&self.config_dir_path)?;
        let mut config = configured(self.config)?;
        let known = config.registries_conf.as_deref().and_then(|path| std::fs::read(path).ok());
        let socket_path = self.socket_dir.join(format!("{}.sock", plugin.stem));
        // Before anything is touched that is another server's.
        Socket::check(&socket_path).context("the plugin socket cannot be made")?;
        let admin = tokio::net::TcpListener::bind(self.admin_address).await;
        let admin = admin.with_context(|| format!("the admin port `{}` cannot be opened", self.admin_address))?;
        let admin_address = admin.local_addr()?;
        let work_dir = self.work_dir.unwrap_or_else(std::env::temp_dir).join("_cmp_server");
        let _lock = lock(&work_dir)?;
        let _ = std::fs::remove_dir_all(&work_dir);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&work_dir);
        made.with_context(|| format!("`{}` cannot be made", work_dir.display()))?;
        // What a render writes elsewhere goes there too, and so goes away with the next start at the latest.
        if tempfile::env::override_temp_dir(&work_dir).is_err() {
            tracing::warn!("copies of files go to the system's directory for temporary ones");
        }
        let at_once = self.renders_at_once.unwrap_or_else(|| 2 * processors());

        for (program, flag) in [(&config.tools.helm, "--helm"), (&config.tools.kustomize, "--kustomize")] {
            if which(program).is_none() {
                tracing::warn!(
                    "`{}` is not there, and what needs it fails: install it, or say where it is with `{flag}`",
                    program.display()
                );
            }
        }
        config.registries.credential_problems().iter().for_each(|problem| tracing::warn!("{problem}"));
        tell_sandbox(&config.tools.sandboxes);
        if let Err(error) = config.tools.sandboxes.offline(&config.tools.helm) {
            // Every render would be refused.
            return Err(Failures::from(Failure::new("", &error, Some(error.hint()))).into());
        }
        let workers = Counts::default();
        // Before there is a socket: nobody shall wait at it.
        config.tools.templates = if self.helm_workers { runner(&config.tools, &workers).await } else { Runner::Process };
        let renders = RenderScheduler::new(at_once).context("the threads that render cannot be started")?;
        let hits = Hits::default();
        config.tools.render_cache = (self.render_cache_bytes > 0).then(|| RenderCache::new(&work_dir, self.render_cache_bytes));
        let mut metrics = Metrics::new(&config.requests, &hits, &renders.gauges);
        config.tools.render_cache.iter().for_each(|cache| metrics.render_cache(cache));
        metrics.helm(&config.tools.templates, &workers);
        metrics.sandbox(&config.tools.sandboxes);
        let report = Arc::new(PinReport::new(config.cache_bytes / 8));
        let client = config.client.clone();
        let resolver = Arc::new(resolver(&config, hits, None, true));
        resolver.preload().await;
        metrics.memory(resolver.gauges().into_iter().chain([("shown", report.gauge())]), config.cache_bytes);
        metrics.store(resolver.store_counts());
        let metrics = Arc::new(metrics);
        let mut tasks = Tasks::default();
        let stored = Arc::clone(&resolver);
        tasks.spawn(Task::Store, async move {
            stored.store_ended().await;
            Ok(())
        });
        let pins_socket = listen_for_pins(&config.pins_socket, &resolver, &client, &mut tasks);
        if let Some(path) = config.registries_conf.clone() {
            tasks.spawn(Task::Registries, async move {
                follow(path, known, client).await;
                Ok(())
            });
        }
        let uploads = Uploads {
            work_dir,
            archives: ArchiveCache::new(self.keep_archives, self.keep_archive_bytes),
            keep_modes: plugin.preserve_file_mode,
            bounds: Bounds { bytes: self.max_archive_bytes, entries: self.max_archive_entries, ..Bounds::default() },
            at_once: Semaphore::new(at_once),
        };
        let service = Service {
            plugin,
            config: Arc::new(config),
            resolver: Arc::clone(&resolver),
            uploads,
            renders,
            metrics: Arc::clone(&metrics),
            events: Events::to([Arc::clone(&report) as Arc<dyn Listener>]),
        };
        let size = self.max_message_mb * 1024 * 1024;
        let service =
            ConfigManagementPluginServiceServer::new(service).max_decoding_message_size(size).max_encoding_message_size(size);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;

        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let admin_server = Admin { socket: socket_path.clone(), metrics, report, token: self.api_token };
        tasks.spawn(Task::Admin, async move {
            admin_server.serve(admin).await;
            Ok(())
        });
        // Last: who finds the socket is answered.
        let mut socket = Socket::bind(&socket_path).context("the plugin socket cannot be made")?;
        let listener = socket.listener().context("the socket is taken")?;
        let server = Server::builder()
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW * STREAMS)
            .max_concurrent_streams(STREAMS)
            .add_service(service)
            .add_service(health_service)
            .add_service(reflection)
            // It shuts down at the end of the connections.
            .serve_with_incoming_shutdown(connections(listener, stopped.map(drop)), std::future::pending());
        tracing::info!(socket = %socket.path().display(), admin = %admin_address, renders_at_once = at_once, "serving");
        tasks.spawn(Task::Plugin, async move { Ok(server.await?) });
        let ended = tokio::select! {
            (_, error) = tasks.ended() => Err(error),
            () = told_to_stop() => Ok(Outcome::Done),
        };
        tracing::info!("draining");
        // First of all: without it `/readyz` says no, and Argo CD begins no call that would be cut off.
        socket.remove();
        drop(stop);
        if tokio::time::timeout(DRAIN, tasks.wait_for(Task::Plugin)).await.is_err() {
            tracing::warn!("renders were cut off");
        }
        super::stored(&resolver).await;
        drop((tasks, pins_socket, socket));
        ended
    }
}

/// Keeps other servers out of a work directory as long as it is held: each empties its own at start.
fn lock(work_dir: &Path) -> anyhow::Result<std::fs::File> {
    let path = work_dir.with_extension("lock");
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let file = made.and_then(|()| std::fs::OpenOptions::new().create(true).append(true).open(&path));
    let file = file.with_context(|| format!("`{}` cannot be made", path.display()))?;
    file.try_lock()
        .with_context(|| format!("`{}` is another server's; give each its own with `--work-dir`", work_dir.display()))?;
    Ok(file)
}

/// Starts this program over with settings for glibc's allocator, which reads them at the start alone. As it comes it keeps for each
/// thread what its longest archive or manifest needed, a multiple of what a server of small charts takes otherwise.
fn tune_allocator() {
    const SETTINGS: [(&str, &str); 3] =
        [("MALLOC_ARENA_MAX", "2"), ("MALLOC_MMAP_THRESHOLD_", "65536"), ("MALLOC_TRIM_THRESHOLD_", "131072")];
    let is_told = SETTINGS.iter().any(|(name, _)| std::env::var_os(name).is_some());
    let Some(program) = std::env::current_exe().ok().filter(|_| !is_told && cfg!(target_env = "gnu")) else { return };
    let error = std::process::Command::new(program).args(std::env::args_os().skip(1)).envs(SETTINGS).exec();
    tracing::debug!(%error, "the allocator stays as it is");
}

/// Raises the number of open files to what the system permits: containers often start with 1,024 of a million.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

/// Tells what bounds the tools have on this kernel.
fn tell_sandbox(sandboxes: &Sandboxes) {
    let (mode, level) = (sandboxes.mode(), sandboxes.level());
    if mode == Mode::Off {
        tracing::warn!(
            "tools run without a sandbox (`--sandbox=off`): whoever can commit to a repository can read what this sidecar can"
        );
        return;
    }
    tracing::info!(kernel = %level, "tools run in a sandbox");
    for guarantee in level.guarantees().filter(|guarantee| !guarantee.is_kept) {
        tracing::warn!("not kept by this kernel ({level}): {}", guarantee.text);
    }
}

/// Answers `pinion generate` processes. Without it they find out by themselves, so that no failure here is one of the server's.
fn listen_for_pins(path: &Path, resolver: &Arc<Resolver>, client: &Client, tasks: &mut Tasks) -> Option<Socket> {
    let mut socket = match Socket::bind(path) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!(socket = %path.display(), %error, "`pinion generate` processes will not be answered");
            return None;
        }
    };
    let client = client.clone();
    let answers = peer::answer(socket.listener()?, Arc::clone(resolver), move || client.configuration());
    tasks.spawn(Task::Pins, async move {
        answers.await;
        Ok(())
    });
    Some(socket)
}

/// Uses registries.conf as it is now, whenever it changes. What cannot be used is not.
async fn follow(path: PathBuf, mut known: Option<Vec<u8>>, client: Client) {
    let read = async || tokio::fs::read(&path).await.ok();
    loop {
        tokio::time::sleep(REREAD).await;
        let now = read().await;
        // A mounted ConfigMap is replaced as a whole; what is gone for a moment comes back.
        if now.is_none() || now == known {
            continue;
        }
        known = now;
        match RegistriesConfig::load(&path) {
            Ok(config) => {
                tracing::info!(path = %path.display(), "registries.conf has changed and is used from now on");
                config.credential_problems().iter().for_each(|problem| tracing::warn!("{problem}"));
                client.replace(config);
            }
            Err(error) => {
                tracing::error!(error = %chain(&error), "registries.conf has changed and cannot be used: the one before stays in use");
            }
        }
    }
}

/// Warm workers where the Helm program is one, else a process for each render.
async fn runner(tools: &Tools, workers: &Counts) -> Runner {
    let helm = &tools.helm;
    if which(helm).is_none() {
        return Runner::Process;
    }
    match Pool::start(helm, Limits::default(), workers.clone(), tools.sandboxes.clone()).await {
        Ok(pool) => {
            tracing::info!(helm = %helm.display(), confines_itself = pool.is_confined(), "charts are rendered by warm workers");
            Runner::Pool(pool)
        }
        Err(error) => {
            tracing::info!(helm = %helm.display(), reason = %error, "charts are rendered by a process each: this Helm is no worker");
            Runner::Process
        }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it is at least 1".into()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

/// SIGTERM or SIGINT.
async fn told_to_stop() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
