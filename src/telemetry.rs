// SPDX-License-Identifier: Apache-2.0
//! Logging: levels and formats.
//!
//! `main` sets it up before anything else runs. All lines go to stderr.

use std::io;
use std::panic::PanicHookInfo;

use tracing::level_filters::LevelFilter;
use tracing::subscriber::SetGlobalDefaultError;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::{Registry, filter};

use crate::config::{LogFormat, LogSettings};

pub use crate::error_chain::ErrorChain;

/// The crates of this workspace, which begin the targets of our own events, and the name by which
/// `--vmodule` selects a whole crate.
const OWN_CRATES: [(&str, &str); 5] = [
    (env!("CARGO_CRATE_NAME"), ""),
    ("kpr_core", ""),
    ("netlink_pipeline", "netlink"),
    ("ipvs_netlink", "ipvs"),
    ("ipset_netlink", "ipset"),
];
/// Libraries that log errors and hand them to us as well: `source` says each once.
const TALKATIVE: [&str; 2] = ["kube_client", "kube_runtime"];

/// Starts logging to stderr, for the whole process. Fails when called twice.
pub fn init(settings: &LogSettings) -> Result<(), SetGlobalDefaultError> {
    tracing::subscriber::set_global_default(subscriber(settings, io::stderr))?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// A panic is a bug, and an error in the log like any other, also in a task that nobody waits for.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or_default();
    let place = panic.location().map(ToString::to_string);
    let thread = std::thread::current();
    tracing::error!(
        cause = message,
        place = place.unwrap_or_default(),
        thread = thread.name().unwrap_or_default(),
        "panicked, please report this bug"
    );
}

/// A subscriber that writes somewhere else.
pub fn subscriber<W>(settings: &LogSettings, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let levels = Levels::new(settings);
    let most_verbose = levels.most_verbose();
    let enabled = filter::filter_fn(move |metadata| levels.enabled(metadata))
        .with_max_level_hint(most_verbose);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        // By panicking on a closed stderr, which must not end the proxy.
        .log_internal_errors(false)
        .with_ansi(false);
    match settings.format {
        LogFormat::Text => Box::new(Registry::default().with(lines.with_filter(enabled))),
        LogFormat::Json => {
            // The span has a key of its own, so that fields of events keep their places.
            let lines = lines.json().flatten_event(true).with_span_list(false);
            Box::new(Registry::default().with(lines.with_filter(enabled)))
        }
    }
}

/// Which level is written, by where an event comes from.
#[derive(Debug)]
struct Levels {
    own: LevelFilter,
    others: LevelFilter,
    /// Name of a module, or the start of it with a `*`, and its level.
    modules: Vec<(String, LevelFilter)>,
}

impl Levels {
    fn new(settings: &LogSettings) -> Self {
        let modules = settings
            .vmodule
            .iter()
            .map(|(pattern, verbosity)| (pattern.clone(), own_level(*verbosity)))
            .collect();
        Self {
            own: own_level(settings.verbosity),
            others: library_level(settings.verbosity),
            modules,
        }
    }

    fn most_verbose(&self) -> LevelFilter {
        let levels = self.modules.iter().map(|(_, level)| *level);
        levels
            .chain([self.own, self.others])
            .max()
            .unwrap_or(self.own)
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level(metadata.target())
    }

    fn level(&self, target: &str) -> LevelFilter {
        let (root, path) = target.split_once("::").unwrap_or((target, ""));
        let Some((_, crate_name)) = OWN_CRATES.iter().find(|(own, _)| *own == root) else {
            return if TALKATIVE.contains(&root) && self.others <= LevelFilter::WARN {
                LevelFilter::ERROR
            } else {
                self.others
            };
        };
        let segments = path.split("::").chain([*crate_name]);
        // The last matching segment is the most special one, and the first pattern wins.
        let named = |pattern: &str| {
            segments
                .clone()
                .any(|segment| match pattern.strip_suffix('*') {
                    Some(prefix) => segment.starts_with(prefix),
                    None => segment == pattern,
                })
        };
        self.modules
            .iter()
            .find(|(pattern, _)| named(pattern))
            .map_or(self.own, |(_, level)| *level)
    }
}

/// klog's numbers: 0 and 1 for what an operator needs, 2 for what the proxy does, from 4 on
/// everything. Warnings and errors are always written.
const fn own_level(verbosity: u32) -> LevelFilter {
    match verbosity {
        0 | 1 => LevelFilter::INFO,
        2 | 3 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

/// Libraries are quiet up to verbosity 3.
const fn library_level(verbosity: u32) -> LevelFilter {
    match verbosity {
        0..=3 => LevelFilter::WARN,
        4 | 5 => LevelFilter::INFO,
        6 | 7 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{debug, info, info_span, trace, warn};

    use super::*;

    /// What was written.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(settings: &LogSettings, events: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(settings, move || writer.clone());
        tracing::subscriber::with_default(subscriber, events);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn verbosity(verbosity: u32) -> LogSettings {
        LogSettings {
            verbosity,
            ..LogSettings::default()
        }
    }

    fn level(settings: &LogSettings, target: &str) -> LevelFilter {
        Levels::new(settings).level(target)
    }

    #[test]
    fn warnings_of_the_api_client_are_left_to_us() {
        let level = |verbosity: u32| {
            let settings = LogSettings {
                verbosity,
                ..LogSettings::default()
            };
            Levels::new(&settings).level("kube_client::client")
        };
        assert_eq!(level(0), LevelFilter::ERROR);
        assert_eq!(level(4), LevelFilter::INFO);
    }

    #[test]
    fn verbosity_chooses_the_level() {
        for (number, own, library) in [
            (0, LevelFilter::INFO, LevelFilter::WARN),
            (1, LevelFilter::INFO, LevelFilter::WARN),
            (2, LevelFilter::DEBUG, LevelFilter::WARN),
            (3, LevelFilter::DEBUG, LevelFilter::WARN),
            (4, LevelFilter::TRACE, LevelFilter::INFO),
            (6, LevelFilter::TRACE, LevelFilter::DEBUG),
            (8, LevelFilter::TRACE, LevelFilter::TRACE),
            (u32::MAX, LevelFilter::TRACE, LevelFilter::TRACE),
        ] {
            assert_eq!(
                level(&verbosity(number), "kube_proxy_rs::health"),
                own,
                "{number}"
            );
            for (crate_name, _) in OWN_CRATES {
                assert_eq!(level(&verbosity(number), crate_name), own, "{crate_name}");
            }
            assert_eq!(
                level(&verbosity(number), "hyper::client"),
                library,
                "{number}"
            );
        }
    }

    #[test]
    fn modules_may_have_their_own_verbosity() {
        let settings = LogSettings {
            vmodule: vec![("health".to_owned(), 4), ("ip*".to_owned(), 2)],
            ..verbosity(0)
        };
        assert_eq!(
            level(&settings, "kube_proxy_rs::health::state"),
            LevelFilter::TRACE
        );
        assert_eq!(level(&settings, "ipset_netlink"), LevelFilter::DEBUG);
        assert_eq!(level(&settings, "ipvs_netlink::client"), LevelFilter::DEBUG);
        assert_eq!(
            level(&settings, "kube_proxy_rs::reconcile"),
            LevelFilter::INFO
        );
        assert_eq!(level(&settings, "kpr_core::plan::ipvs"), LevelFilter::DEBUG);
        assert_eq!(
            level(&settings, "netlink_pipeline::socket"),
            LevelFilter::INFO
        );
        assert_eq!(level(&settings, "hyper::health"), LevelFilter::WARN);
        assert_eq!(Levels::new(&settings).most_verbose(), LevelFilter::TRACE);
    }

    #[test]
    fn text_lines_have_a_message_and_fields() {
        let text = written(&verbosity(0), || {
            info!(service = "default/web", steps = 3, "plan applied");
            debug!("unseen");
            trace!("unseen");
        });
        assert!(text.contains("INFO"), "{text}");
        assert!(
            text.contains("plan applied service=\"default/web\" steps=3"),
            "{text}"
        );
        assert!(!text.contains("unseen") && text.ends_with('\n'), "{text}");
    }

    #[test]
    fn json_lines_are_flat_objects() {
        let settings = LogSettings {
            format: LogFormat::Json,
            ..verbosity(2)
        };
        let text = written(&settings, || {
            warn!(steps = 3, "plan failed");
            debug!("seen");
        });
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["level"], "WARN");
        assert_eq!(lines[0]["message"], "plan failed");
        assert_eq!(lines[0]["steps"], 3);
        assert_eq!(lines[1]["level"], "DEBUG");
    }
    #[test]
    fn a_span_leaves_the_fields_of_an_event_alone() {
        let line = |format| {
            let settings = LogSettings {
                format,
                ..verbosity(0)
            };
            written(&settings, || {
                let watch = info_span!("watch", kind = "Service");
                watch.in_scope(|| warn!(kind = "Service", failures = 1, "watch failed"));
            })
        };
        let text = line(LogFormat::Text);
        assert!(
            text.contains("watch{kind=\"Service\"}: ")
                && text.ends_with(": watch failed kind=\"Service\" failures=1\n"),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&line(LogFormat::Json)).unwrap();
        assert_eq!(json["message"], "watch failed");
        assert_eq!(json["kind"], "Service");
        assert_eq!(json["failures"], 1);
        let span = serde_json::json!({ "name": "watch", "kind": "Service" });
        assert_eq!(json["span"], span);
    }
}
