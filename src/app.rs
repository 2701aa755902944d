// SPDX-License-Identifier: Apache-2.0
//! Composition root: the only place that knows every part. Builds and checks them, binds sockets,
//! runs, and stops in order.

mod bootstrap;
mod check_config;
mod cleanup;
mod config_file;
mod explain;
mod health_checks;
mod instrumentation;
mod links;
mod listening;
mod local;
mod lock;
mod loopback;
mod matches;
mod modes;
mod output;
mod page;
mod plan;
mod reexec;
mod reload;
mod screen;
mod service_metrics;
mod serving;
mod shutdown;
mod state;
mod status;
mod top;
mod waiting;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::config::{self, Command};
use crate::dataplane::exec::{Exec, System};
use crate::events::{Event, Events, action, reason};
use crate::health::{ProxyHealth, ServeError, ServiceHealthServers};
use crate::loopback::Forwarder;
use crate::reconcile::Input;
use crate::reconcile::observer::{Observer, Unobserved};
use crate::reconcile::sync_loop::SyncLoop;
use crate::source::{self, Update};
use crate::telemetry;
use kpr_core::model::{IpFamily, ProxyMode};
use listening::{Published, keep_open};
use lock::{Holder, Lock};
use modes::{Opened, Opening};
use output::{print, print_error};
use serving::{HEALTH_SERVER, serve_all, servers};
use shutdown::{Ended, Signals};

/// Inputs that may wait for the loop; a faster source blocks.
const QUEUED_UPDATES: usize = 1024;

/// Updates between source and loop that are not counted yet.
const FORWARDED_UPDATES: usize = 16;

/// Does what the command line says.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    crate::memory::keep_large_apart();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    block_on(execute(&arguments)).unwrap_or_else(|error| {
        print_error(&error);
        ExitCode::FAILURE
    })
}

/// Exit code of a command that a signal ended, as a shell has it for SIGTERM.
const EXIT_SIGNALLED: u8 = 128 + 15;

async fn execute(arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let command = config::parse(arguments.iter().cloned())?;
    if let Command::Run(settings) = command {
        telemetry::init(&settings.logging)?;
        let restart = Box::pin(run(*settings, arguments, &mut signals)).await?;
        let Some(lock) = restart else {
            return Ok(ExitCode::SUCCESS);
        };
        // The new program would know nothing of a signal that has come.
        return match signals.unless_received(lock.hand_over()).await {
            None => Ok(ExitCode::SUCCESS),
            Some(lock) => Err(reexec::reexec(arguments, lock)),
        };
    }
    tokio::select! {
        code = execute_once(command) => code,
        () = signals.received() => Ok(ExitCode::from(EXIT_SIGNALLED)),
    }
}

/// Does what ends by itself. What blocks has a thread, so that a signal is obeyed.
async fn execute_once(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(_) => anyhow::bail!("the proxy does not end by itself"),
        Command::Plan {
            settings,
            output,
            verbose,
        } => {
            telemetry::init(&settings.logging)?;
            plan::command(*settings, output, verbose).await
        }
        Command::CheckConfig {
            file,
            output,
            verbose,
        } => blocking(move || check_config::command(&file, output, verbose)).await,
        Command::Top(options) => top::command(&options).await,
        Command::Explain {
            target,
            from,
            output,
        } => explain::command(&target, from.as_deref(), output).await,
        Command::Status { output } => status::command(output).await,
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
            let clock = Clock::system();
            let here = Holder::here("cleanup", clock.now());
            let _lock = Lock::try_take(lock::NAME, here).await.map_err(|holder| {
                anyhow::anyhow!("another kube-proxy-rs runs here ({holder}): stop it first")
            })?;
            let exec: Arc<dyn Exec> = Arc::new(System::new(clock, System::DEFAULT_DEADLINE));
            let left = blocking(move || cleanup::run(&settings, &exec)).await?;
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
            blocking(move || init(*settings)).await?;
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
        api_servers: BTreeSet::new(),
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(future);
    // Nobody waits for a thread that blocks.
    runtime.shutdown_background();
    done
}

/// Runs what blocks on a thread of its own, which the sync loop goes before.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (answer, answered) = oneshot::channel();
    let thread = std::thread::Builder::new().name("answer".to_owned());
    thread.spawn(move || {
        go_behind();
        // Nobody may be waiting any more.
        drop(answer.send(work()));
    })?;
    answered.await?
}

/// Lowers the priority of this thread for good: who asks must not cost who is served.
fn go_behind() {
    if let Err(error) = rustix::process::setpriority_process(None, ASKED_NICE) {
        tracing::debug!(%error, "cannot lower the priority of a thread");
    }
}

/// The nice value of who reads the kernel for somebody who asks: a tenth of the usual share of a
/// busy processor.
const ASKED_NICE: i32 = 10;

fn source_options(settings: &Settings) -> anyhow::Result<source::Options> {
    Ok(source::Options {
        node_name: bootstrap::node_name(settings)?,
        allow_external_ips: settings.allow_external_ips,
        annotations: settings.annotations.clone(),
        cluster: source::ClusterSize::default(),
    })
}

/// How long a proxy that failed waits for its last Event to be written.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(3);

/// Is the proxy until a signal ends it. If it gives up, its Node says why. With the lock it must be
/// started anew.
async fn run(
    settings: Settings,
    arguments: &[OsString],
    signals: &mut Signals,
) -> anyhow::Result<Option<Lock>> {
    crate::descriptors::raise_limit();
    for notice in &settings.notices {
        warn!(
            subject = notice.subject,
            notice = notice.message,
            "configuration notice"
        );
    }
    let clock = Clock::system();
    let metrics = instrumentation::Metrics::new(&settings, &clock)?;
    let (events, writing) = bootstrap::events(&settings, &metrics, &clock)?;
    let here = Holder {
        health: settings.healthz_address,
        ..Holder::here(settings.mode.as_str(), clock.now())
    };
    let (known, other) = watch::channel(None);
    let says = |holder: &Holder| {
        waiting::say_whom_for(holder, &events);
        known.send_replace(Some(holder.clone()));
    };
    let taking = async {
        tokio::select! {
            biased;
            lock = Lock::take(lock::NAME, here, says) => lock,
            never = waiting::answer_probes(&settings, &metrics, &clock, other) => match never {},
        }
    };
    let Some(lock) = signals.unless_received(taking).await else {
        return Ok(None);
    };
    let parts = (clock, metrics, events.clone());
    let ended = Box::pin(proxy(settings, arguments, parts, signals)).await;
    if matches!(ended, Ok(Ended::Restart)) {
        return Ok(Some(lock));
    }
    lock.release().await;
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
    ended.map(|_stopped| None)
}

async fn proxy(
    settings: Settings,
    arguments: &[OsString],
    (clock, metrics, events): (Clock, instrumentation::Metrics, Events),
    signals: &mut Signals,
) -> anyhow::Result<Ended> {
    bootstrap::set_oom_score(&settings);
    let exec: Arc<dyn Exec> = Arc::new(System::new(clock.clone(), System::DEFAULT_DEADLINE));
    let options = source_options(&settings)?;
    let events = events.sharing(options.node_name.clone(), options.cluster.clone());
    let source = settings.source.clone();
    let health = ProxyHealth::new(clock.clone(), settings.sync.period);
    // Where a Node object is not needed, one may still mark the node.
    health.set_node_eligible(!source.needs_node());
    let settings = Arc::new(settings);
    let (newest, settings_now) = watch::channel(settings.clone());
    let (inputs, received) = mpsc::channel(QUEUED_UPDATES);
    let node = options.node_name.clone();
    let page = state::StatePage::new(inputs.clone());
    let overview = status::Overview::new(&settings, &node, (&clock, &metrics, &health), page);
    let flags = config::shown_flags(arguments.iter().cloned())?;
    let (servers, admin) = servers(&settings_now, &metrics, overview.clone(), flags)?;
    let (health_checks, wanted_checks) = Published::new();
    let (loopback, wanted_ports) = Published::new();
    let published = Arc::new(Notify::new());
    let observer = instrumentation::LoopObserver {
        published: published.clone(),
        health_checks,
        loopback,
        events: events.clone(),
        needs_node: source.needs_node(),
        overview,
        sync: metrics.sync.clone(),
        dataplane: metrics.dataplane.clone(),
        planned: 0.into(),
    };
    let observer = Arc::new(observer);
    let checks = ServiceHealthServers::new(health.clone());
    let checking = keep_open(checks, wanted_checks, events.clone(), &node);
    let looping_back = keep_open(Forwarder::default(), wanted_ports, events.clone(), &node);
    let mut serving = pin!(serve_all(
        servers,
        checking,
        looping_back,
        local::serve(admin)
    ));
    // Probes are answered meanwhile: it takes as long as a program waits for a lock.
    let preparing = prepared(
        settings.clone(),
        clock,
        exec.clone(),
        observer.clone(),
        &metrics,
    );
    let opened = tokio::select! {
        opened = signals.unless_received(preparing) => opened,
        ended = &mut serving => return ended.map(|()| Ended::Stopped),
    };
    let Some(opened) = opened.transpose()? else {
        return Ok(Ended::Stopped);
    };
    // From here on the servers end with the loop, and not before what failed is known.
    drop(observer);
    let has_own_link = settings.mode == ProxyMode::IPVS;
    let monitor = links::monitor(has_own_link).context("cannot watch node addresses")?;
    started(&settings, &node, &opened.families, &health);

    let (stop, stopped) = watch::channel(false);
    let (sync, loop_ended) = start_loop(opened.sync, received, stopped, exec)?;
    links::watch_links(monitor, has_own_link, inputs.clone())?;
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
    let reading = read(source, options, source_observer, (inputs, &health));
    events.send(Event::starting());
    let mut is_serving = true;
    let outcome = tokio::select! {
        ended = reading => ended.map(|()| Ended::Stopped).map_err(Into::into),
        ended = &mut serving => {
            is_serving = false;
            ended.map(|()| Ended::Stopped)
        }
        () = needs_restart(following, &published) => Ok(Ended::Restart),
        _ = loop_ended => Ok(Ended::Stopped),
        () = signals.received() => {
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

/// Waits for a cause to restart in place, and says it.
async fn needs_restart(
    following: impl Future<Output = Vec<&'static str>>,
    ports_published: &Notify,
) {
    tokio::select! {
        fields = following => info!(
            fields = fields.join(", "),
            "configuration change needs a restart, restarting in place"
        ),
        () = ports_published.notified() => info!(
            "pods' ports are published by nftables, restarting in place to hold rules there too"
        ),
    }
}

/// Says that the loop starts.
fn started(settings: &Settings, node: &str, families: &[IpFamily], health: &ProxyHealth) {
    info!(
        version = env!("CARGO_PKG_VERSION"),
        mode = settings.mode.as_str(),
        node,
        "starting kube-proxy-rs"
    );
    for family in families {
        health.started(*family);
    }
}

/// Reads the source for the loop.
async fn read(
    source: source::Source,
    options: source::Options,
    observer: instrumentation::SourceObserver,
    (inputs, health): (mpsc::Sender<Input>, &ProxyHealth),
) -> Result<(), source::Error> {
    let (updates, sent) = mpsc::channel(FORWARDED_UPDATES);
    tokio::select! {
        ended = source::run(source, options, Arc::new(observer), updates) => ended,
        () = forward(sent, inputs, health) => Ok(()),
    }
}

/// Passes on what the source sends, and tells health at once: a loop that hangs takes nothing in.
async fn forward(
    mut updates: mpsc::Receiver<Update>,
    inputs: mpsc::Sender<Input>,
    health: &ProxyHealth,
) {
    while let Some(update) = updates.recv().await {
        health.input_sent();
        if inputs.send(update.into()).await.is_err() {
            return;
        }
    }
}

/// Opens the mode of the settings, and writes the kernel settings that every mode has.
async fn prepared(
    settings: Arc<Settings>,
    clock: Clock,
    exec: Arc<dyn Exec>,
    observer: Arc<dyn Observer>,
    metrics: &instrumentation::Metrics,
) -> anyhow::Result<Opened> {
    let api_servers = settings.source.server_addresses().await?;
    let (registry, dataplane) = (metrics.registry.clone(), metrics.dataplane.clone());
    blocking(move || {
        let opened = modes::open(Opening {
            settings: settings.clone(),
            exec: &exec,
            clock,
            observer,
            api_servers,
            registry: Some(&registry),
        })?;
        bootstrap::tune_conntrack(&settings, &dataplane);
        Ok(opened)
    })
    .await
}

/// Netlink calls block, so the loop has a thread and a small runtime to itself. Also returns a
/// receiver that resolves when it ends.
fn start_loop(
    sync: Box<dyn SyncLoop>,
    inputs: mpsc::Receiver<Input>,
    stop: watch::Receiver<bool>,
    exec: Arc<dyn Exec>,
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
    let sync = shutdown::Sync {
        thread,
        exec,
        patience: shutdown::PATIENCE,
    };
    Ok((sync, loop_ended))
}
