// SPDX-License-Identifier: Apache-2.0
//! Kubernetes Events for operators, on the Node and on Services.
//!
//! Any part makes an [`Event`] and passes it to the loop's or the source's observer, or to
//! [`Events`]. Sending never blocks: events go into a bounded queue, and those that do not fit are
//! counted and dropped. A task of its own ([`publish`]) rate-limits and writes them. Every event is
//! logged too, so that nothing depends on it; a proxy without an API server has the log alone.

mod limit;
pub mod publish;
mod share;

use std::sync::Arc;

use tokio::sync::mpsc;

use share::Share;

use crate::line_limit::SILENCED;
use crate::metrics::EventMetrics;
use crate::source::ClusterSize;
use kpr_core::model::ServiceName;

/// Length of the queue. More than this at once helps no operator.
const QUEUED: usize = 128;

/// The values of [`Event::reason`]. The first three are kube-proxy's.
pub mod reason {
    pub const STARTING: &str = "Starting";
    pub const HEALTH_SERVER_FAILED: &str = "FailedToStartProxierHealthcheck";
    pub const METRICS_SERVER_FAILED: &str = "FailedToStartMetricServer";
    /// kube-proxy's too.
    pub const SERVICE_HEALTH_CHECK_FAILED: &str = "FailedToStartServiceHealthcheck";
    /// A node port is not served on a loopback address.
    pub const LOCALHOST_NODE_PORT_FAILED: &str = "FailedToListenOnLocalhost";
    /// The proxy cannot work here: no IPVS, no scheduler, no iptables.
    pub const START_FAILED: &str = "FailedToStart";
    /// Another proxy serves this network namespace; this one waits for its end.
    pub const ANOTHER_PROXY: &str = "AnotherProxy";
    /// A changed configuration file cannot be used.
    pub const INVALID_CONFIGURATION: &str = "InvalidConfiguration";
    /// The Node object lacks what planning needs, for longer than is waited.
    pub const NODE_INCOMPLETE: &str = "NodeIncomplete";
    /// The configuration does not fit to this node.
    pub const DOUBTFUL_CONFIGURATION: &str = "DoubtfulConfiguration";
    /// A part of a Service cannot be used.
    pub const INVALID_SERVICE: &str = "InvalidService";
    /// Another Service has the address and port.
    pub const ADDRESS_CONFLICT: &str = "AddressConflict";
    /// A Service asks for more than one may have; the rest is not programmed.
    pub const OVER_BUDGET: &str = "OverBudget";
    /// A Service has more problems than there are Events about it.
    pub const MORE_PROBLEMS: &str = "MoreProblems";
    /// Another interface or endpoint has the address of a Service, so that it is not bound here.
    pub const ADDRESS_NOT_BOUND: &str = "AddressNotBound";
    /// The kernel does not take what the Service needs.
    pub const REFUSED_BY_KERNEL: &str = "RefusedByKernel";
    /// What an annotation asks for cannot be done here.
    pub const SETTING_NOT_POSSIBLE: &str = "SettingNotPossible";
}

/// The values of [`Event::action`]; the first two are kube-proxy's.
pub mod action {
    pub const START: &str = "StartKubeProxy";
    pub const LISTEN: &str = "Listen";
    pub const CONFIGURE: &str = "Configure";
    pub const PROGRAM: &str = "Program";
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Regarding {
    /// Our own Node.
    Node,
    Service(ServiceName),
}

/// The type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Normal,
    Warning,
}

/// A condition that an operator should know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub regarding: Regarding,
    pub severity: Severity,
    /// One of [`reason`].
    pub reason: &'static str,
    /// One of [`action`].
    pub action: &'static str,
    /// For people.
    pub note: String,
}

impl Event {
    /// A warning about the node.
    pub fn node(reason: &'static str, action: &'static str, note: impl Into<String>) -> Self {
        Self {
            regarding: Regarding::Node,
            severity: Severity::Warning,
            reason,
            action,
            note: note.into(),
        }
    }

    /// A warning about a Service.
    pub fn service(
        service: ServiceName,
        reason: &'static str,
        action: &'static str,
        note: impl Into<String>,
    ) -> Self {
        Self {
            regarding: Regarding::Service(service),
            ..Self::node(reason, action, note)
        }
    }

    /// Of this Service more is wrong than is reported.
    pub fn silenced(service: ServiceName) -> Self {
        Self::service(service, reason::MORE_PROBLEMS, action::PROGRAM, SILENCED)
    }

    /// The proxy starts.
    pub fn starting() -> Self {
        Self {
            severity: Severity::Normal,
            ..Self::node(reason::STARTING, action::START, "")
        }
    }
}

/// The sending side of the queue. Clones share it.
#[derive(Clone, Debug)]
pub struct Events {
    /// None: the log is all there is.
    queue: Option<mpsc::Sender<Event>>,
    /// None: this node speaks of everything.
    share: Option<Share>,
    metrics: EventMetrics,
}

/// The other end of the queue.
pub type Queue = mpsc::Receiver<Event>;

impl Events {
    /// Drops events, because there is no API server.
    pub const fn nowhere(metrics: EventMetrics) -> Self {
        Self {
            queue: None,
            share: None,
            metrics,
        }
    }

    /// A queue and its end, which [`publish::run`] reads.
    pub fn queue(metrics: EventMetrics) -> (Self, Queue) {
        let (sender, queue) = mpsc::channel(QUEUED);
        let events = Self {
            queue: Some(sender),
            share: None,
            metrics,
        };
        (events, queue)
    }

    /// Leaves most of what all nodes see to other nodes.
    #[must_use]
    pub fn sharing(self, node: Arc<str>, cluster: ClusterSize) -> Self {
        let share = Some(Share { node, cluster });
        Self { share, ..self }
    }

    /// Queues an event; never blocks.
    pub fn send(&self, event: Event) {
        if self.share.as_ref().is_some_and(|share| !share.has(&event)) {
            self.metrics.left_to_others();
            return;
        }
        if let Some(queue) = &self.queue
            && queue.try_send(event).is_err()
        {
            self.metrics.dropped();
        }
    }
}

/// Identity of the sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reporter {
    /// The name of our Node object.
    pub node: Arc<str>,
    /// The machine's own name.
    pub host: Arc<str>,
}

#[cfg(test)]
mod tests;
