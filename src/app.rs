// SPDX-License-Identifier: Apache-2.0
//! Composition root: the only place that knows every part. Builds and checks them, binds sockets,
//! runs, and stops in order.

mod bootstrap;
mod cleanup;
mod config_file;
mod health_checks;
mod instrumentation;
mod listening;
mod loopback;
mod modes;
mod output;
mod reexec;
mod reload;
mod shutdown;
mod state;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info};

use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::config::{self, Command, OutputFormat};
use crate::dataplane::exec::{Exec, System};
use crate::dataplane::links::{LinkError, Links, Monitor};
use crate::events::{Event, Events, action, reason};
use crate::health::{
    AdminSurface, ProxyHealth, ServeError, Server, ServiceHealthServers, admin_routes,
    health_routes,
};
use crate::loopback::Forwarder;
use crate::reconcile::Input;
use crate::reconcile::observer::{Observer, Unobserved};
use crate::reconcile::sync_loop::SyncLoop;
use crate::source;
use crate::telemetry;
use listening::{Published, keep_open};
use modes::{Opened, Opening};
use output::{print, print_error};
use shutdown::Ended;

/// Exit code of `plan` when there is something to change, as `diff` and others have it.
const EXIT_CHANGES: u8 = 2;

/// Inputs that may wait for the loop; a faster source blocks.
const QUEUED_UPDATES: usize = 1024;

/// How long `plan` waits for an API server.
const PLAN_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Does what the command line says.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    crate::memory::keep_large_apart();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let result = match config::parse(arguments.iter().cloned()) {
        Ok(command) => execute(command, &arguments),
        Err(error) => Err(error.into()),
    };
    result.unwrap_or_else(|error| {
        print_error(&error);
        ExitCode::FAILURE
    })
}

fn execute(command: Command, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(settings) => {
            telemetry::init(&settings.logging)?;
            match block_on(run(*settings, arguments))? {
                Ended::Stopped => Ok(ExitCode::SUCCESS),
                Ended::Restart => Err(reexec::reexec(arguments)),
            }
        }
        Command::Plan { settings, output } => {
            telemetry::init(&settings.logging)?;
            block_on(print_plan(*settings, output))
        }
        Command::CheckConfig { file } => check_config(&file),
        Command::WriteConfig { path, settings } => {
            config::file::write(&path, &settings.configuration)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Version(text) | Command::Help(text) => {
            print(format_args!("{}\n", text.trim_end()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Cleanup(settings) => {
            telemetry::init(&settings.logging)?;
            let exec: Arc<dyn Exec> =
                Arc::new(System::new(Clock::system(), System::DEFAULT_DEADLINE));
            let left = cleanup::run(&settings, &exec)?;
            if left.is_empty() {
                return Ok(ExitCode::SUCCESS);
            }
            // The words are kube-proxy's.
            anyhow::bail!(
                "encountered an error while tearing down rules: {}",
                left.join("; ")
            )
        }
        Command::InitOnly(settings) => {
            telemetry::init(&settings.logging)?;
            init(*settings)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Does what needs privileges and no API server: loads IPVS and the scheduler, writes kernel
/// settings and time-outs.
fn init(settings: Settings) -> anyhow::Result<()> {
    let clock = Clock::system();
    let exec: Arc<dyn Exec> = Arc::new(System::new(clock.clone(), System::DEFAULT_DEADLINE));
    let metrics = instrumentation::Metrics::new(&settings, &clock)?;
    let settings = Arc::new(settings);
    let mut opened = modes::open(Opening {
        settings: settings.clone(),
        exec: &exec,
        clock,
        observer: Arc::new(Unobserved),
        api_server: None,
        registry: None,
    })?;
    bootstrap::tune_conntrack(&settings, &metrics.dataplane);
    let (steps, failures) = opened.sync.write_settings();
    if failures.is_empty() {
        info!(steps, "kernel prepared");
        return Ok(());
    }
    anyhow::bail!("cannot prepare the kernel: {}", failures.join("; "))
}

/// The sources and servers are few and mostly wait: one thread does.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future)
}

/// Prints the errors and notices of a configuration file.
fn check_config(file: &std::path::Path) -> anyhow::Result<ExitCode> {
    let report = config::check::check(file)?;
    print(&report)?;
    Ok(if report.is_usable() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn source_options(settings: &Settings) -> anyhow::Result<source::Options> {
    Ok(source::Options {
        node_name: bootstrap::node_name(settings)?,
        allow_external_ips: settings.allow_external_ips,
    })
}

/// Prints the steps that would change this node's kernel, without changing it.
async fn print_plan(settings: Settings, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let clock = Clock::system();
    let exec: Arc<dyn Exec> = Arc::new(System::new(clock.clone(), System::DEFAULT_DEADLINE));
    let options = source_options(&settings)?;
    let reading = source::read(
        settings.source.clone(),
        options,
        Arc::new(source::Unobserved),
    );
    let updates = tokio::time::timeout(PLAN_PATIENCE, reading)
        .await
        .context("timed out reading Services and EndpointSlices")??;
    let api_server = settings.source.server_address().await?;
    let opened = modes::open(Opening {
        settings: Arc::new(settings),
        exec: &exec,
        clock,
        observer: Arc::new(Unobserved),
        api_server,
        registry: None,
    })?;
    let plans = opened.sync.plan_only(updates)?;
    match output {
        OutputFormat::Text => {
            for plan in &plans {
                print(&plan.text)?;
            }
        }
        OutputFormat::Json => {
            let steps: Vec<_> = plans.iter().flat_map(|plan| &plan.steps).collect();
            print(format_args!("{}\n", serde_json::to_string_pretty(&steps)?))?;
        }
    }
    let is_empty = plans.iter().all(|plan| plan.steps.is_empty());
    Ok(if is_empty {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_CHANGES)
    })
}

/// How long a proxy that failed waits for its last Event to be written.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(3);

/// Is the proxy until a signal ends it. If it gives up, its Node says why.
async fn run(settings: Settings, arguments: &[OsString]) -> anyhow::Result<Ended> {
    for notice in &settings.notices {
        tracing::warn!(
            subject = notice.subject,
            notice = notice.message,
            "configuration notice"
        );
    }
    let clock = Clock::system();
    let metrics = instrumentation::Metrics::new(&settings, &clock)?;
    let (events, writing) = bootstrap::events(&settings, &metrics, &clock).await?;
    let ended = proxy(settings, arguments, clock, metrics, events.clone()).await;
    if let Err(error) = &ended {
        let reason = match error.downcast_ref::<ServeError>() {
            Some(error) if error.name == HEALTH_SERVER => reason::HEALTH_SERVER_FAILED,
            Some(_) => reason::METRICS_SERVER_FAILED,
            None => reason::START_FAILED,
        };
        events.send(Event::node(reason, action::START, format!("{error:#}")));
        drop(events);
        // Written or not: there is no more to do.
        drop(tokio::time::timeout(FAREWELL, writing).await);
    }
    ended
}

/// The names of the two servers.
const HEALTH_SERVER: &str = "healthz";
const METRICS_SERVER: &str = "metrics";

async fn proxy(
    settings: Settings,
    arguments: &[OsString],
    clock: Clock,
    metrics: instrumentation::Metrics,
    events: Events,
) -> anyhow::Result<Ended> {
    bootstrap::set_oom_score(&settings);
    let exec: Arc<dyn Exec> = Arc::new(System::new(clock.clone(), System::DEFAULT_DEADLINE));
    let options = source_options(&settings)?;
    let source = settings.source.clone();
    let health = ProxyHealth::new(clock.clone(), settings.sync.period);
    // Where a Node object is not needed, one may still mark the node.
    health.set_node_eligible(!source.needs_node());
    let last_plans = Arc::new(instrumentation::LastPlans::default());
    let settings = Arc::new(settings);
    let (newest, settings_now) = watch::channel(settings.clone());
    let (inputs, received) = mpsc::channel(QUEUED_UPDATES);
    let page = state::StatePage::new(last_plans.clone(), inputs.clone());
    let flags = config::shown_flags(arguments.iter().cloned())?;
    let shown = (page, flags, clock.clone());
    let (health_server, admin_server) = servers(&settings_now, &metrics, &health, shown)?;
    let (health_checks, wanted_checks) = Published::new();
    let (loopback, wanted_ports) = Published::new();
    let observer = Arc::new(instrumentation::LoopObserver {
        health: health.clone(),
        last_plans,
        health_checks,
        loopback,
        events: events.clone(),
        started: clock.now(),
        clock: clock.clone(),
        sync: metrics.sync.clone(),
        dataplane: metrics.dataplane.clone(),
        planned: 0.into(),
    });
    let opened = prepared(settings.clone(), clock, &exec, observer, &metrics).await?;
    let links = Monitor::open().context("cannot watch node addresses")?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        mode = settings.mode.as_str(),
        node = %options.node_name,
        "starting kube-proxy-rs"
    );
    for family in &opened.families {
        health.started(*family);
    }

    let (stop, stopped) = watch::channel(false);
    let (sync, loop_ended) = start_loop(opened.sync, received, stopped)?;
    watch_links(links, inputs.clone())?;
    let node = options.node_name.clone();
    let source_observer = instrumentation::SourceObserver {
        metrics: metrics.source,
        events: events.clone(),
    };
    let following = reload::follow(
        arguments,
        reload::Targets {
            settings: newest,
            inputs: inputs.clone(),
            health: health.clone(),
            dataplane: metrics.dataplane.clone(),
            events: events.clone(),
        },
    );
    let reading = source::run(source, options, Arc::new(source_observer), inputs);
    let checks = ServiceHealthServers::new(health.clone());
    let checking = keep_open(checks, wanted_checks, events.clone(), &node);
    let looping_back = keep_open(Forwarder::default(), wanted_ports, events.clone(), &node);
    let serving = serve_all([health_server, admin_server], checking, looping_back);
    tokio::pin!(serving);
    events.send(Event::starting());
    let mut is_serving = true;
    let outcome = tokio::select! {
        ended = reading => ended.map(|()| Ended::Stopped).map_err(Into::into),
        ended = &mut serving => {
            is_serving = false;
            ended.map(|()| Ended::Stopped)
        }
        fields = following => {
            info!(fields = fields.join(", "), "configuration change needs a restart, restarting in place");
            Ok(Ended::Restart)
        }
        _ = loop_ended => Ok(Ended::Stopped),
        () = shutdown::signalled() => {
            info!("received stop signal, shutting down");
            Ok(Ended::Stopped)
        }
    };
    let still_serving = async {
        if is_serving {
            drop(serving.await);
        }
    };
    shutdown::wind_down(outcome, &health, &stop, sync, still_serving).await
}

/// Opens the mode of the settings, and writes the kernel settings that every mode has.
async fn prepared(
    settings: Arc<Settings>,
    clock: Clock,
    exec: &Arc<dyn Exec>,
    observer: Arc<dyn Observer>,
    metrics: &instrumentation::Metrics,
) -> anyhow::Result<Opened> {
    let api_server = settings.source.server_address().await?;
    let opened = modes::open(Opening {
        settings: settings.clone(),
        exec,
        clock,
        observer,
        api_server,
        registry: Some(&metrics.registry),
    })?;
    bootstrap::tune_conntrack(&settings, &metrics.dataplane);
    Ok(opened)
}

/// Netlink calls block, so the loop has a thread and a small runtime to itself. Also returns a
/// receiver that resolves when it ends.
fn start_loop(
    sync: Box<dyn SyncLoop>,
    inputs: mpsc::Receiver<Input>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<(shutdown::Sync, oneshot::Receiver<()>)> {
    let (ended, loop_ended) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new()
        .name("sync".to_owned())
        .spawn(move || {
            // Dropped when the loop ends, however it ends.
            let _ended = ended;
            block_on(async {
                sync.run(inputs, stop).await;
                Ok(())
            })
        })?;
    Ok((thread, loop_ended))
}

/// Binds the health and the metrics server, where they are wanted.
fn servers(
    newest: &watch::Receiver<Arc<Settings>>,
    metrics: &instrumentation::Metrics,
    health: &ProxyHealth,
    (page, flags, clock): (state::StatePage, Vec<(String, String)>, Clock),
) -> anyhow::Result<(Option<Server>, Option<Server>)> {
    let settings = newest.borrow().clone();
    let configuration = newest.clone();
    let page = Arc::new(page);
    let hard_fail = settings.bind_address_hard_fail;
    let bind = |name, address: Option<_>, routes| {
        address
            .map(|address| Server::bind(name, address, routes, hard_fail))
            .transpose()
    };
    let health_routes = health_routes(health.clone(), metrics.health.clone());
    let admin_routes = admin_routes(AdminSurface {
        registry: metrics.registry.clone(),
        mode: settings.mode,
        flags: flags.into(),
        clock,
        kubernetes_version: settings.kubernetes_version.clone(),
        configuration: Arc::new(move || {
            // Plain data always has a JSON form.
            serde_json::to_value(&configuration.borrow().configuration).unwrap_or_default()
        }),
        state: Arc::new(move |query| {
            let page = page.clone();
            Box::pin(async move { page.show(&query).await })
        }),
    })?;
    Ok((
        bind(HEALTH_SERVER, settings.healthz_address, health_routes)?,
        bind(METRICS_SERVER, settings.metrics_address, admin_routes)?,
    ))
}

/// Serves until the process ends; a server that is not wanted never ends.
async fn serve(server: Option<Server>) -> anyhow::Result<()> {
    match server {
        Some(server) => Ok(server.run().await?),
        None => std::future::pending().await,
    }
}

/// Runs everything that serves clients.
async fn serve_all(
    [first, second]: [Option<Server>; 2],
    checking: impl Future<Output = ()>,
    looping_back: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    tokio::select! {
        ended = serve(first) => ended,
        ended = serve(second) => ended,
        () = checking => Ok(()),
        () = looping_back => Ok(()),
    }
}

/// How long the address watcher blocks before it checks whether the loop has ended.
const LINKS_PATIENCE: std::time::Duration = std::time::Duration::from_mins(1);

/// Notifies the loop of changed node addresses. The thread ends after the loop.
fn watch_links(mut monitor: Monitor, inputs: mpsc::Sender<Input>) -> anyhow::Result<()> {
    let mut links = Links::open()?;
    let mut watching = move || -> Result<(), LinkError> {
        // Our own additions to our link are notified too, and ignored.
        let mut ours = None;
        while !inputs.is_closed() {
            let Some(change) = monitor.wait(LINKS_PATIENCE)? else {
                continue;
            };
            if ours.is_none_or(|ours| change.concerns_others_than(ours)) {
                ours = links
                    .find(kpr_core::plan::ipvs::step::LINK)?
                    .map(|link| link.index);
            }
            let is_news = ours.is_none_or(|ours| change.concerns_others_than(ours));
            if is_news && inputs.blocking_send(Input::NodeAddresses).is_err() {
                break;
            }
        }
        Ok(())
    };
    let watch = move || {
        if let Err(error) = watching() {
            error!(error = %telemetry::ErrorChain(&error), "stopped watching node addresses");
        }
    };
    std::thread::Builder::new()
        .name("links".to_owned())
        .spawn(watch)?;
    Ok(())
}
