// SPDX-License-Identifier: Apache-2.0
//! Which nodes speak about what all of them see: a few, chosen by a hash of node and object, so
//! that one mistake in a Service does not make five thousand nodes write.

use std::sync::Arc;

use super::{Event, Regarding, reason};
use crate::source::cluster_size::{ClusterSize, hash};

/// Expected number of nodes that speak about one thing. With fewer it would happen that none does:
/// now it does for one thing in 150.
const SPEAKERS: f64 = 5.0;

/// The most nodes that are believed in: whoever writes EndpointSlices can name any number.
const MOST_NODES: f64 = 10_000.0;

/// The share of one node.
#[derive(Clone, Debug)]
pub(super) struct Share {
    pub(super) node: Arc<str>,
    pub(super) cluster: ClusterSize,
}

impl Share {
    /// Whether this node speaks of an event.
    pub(super) fn has(&self, event: &Event) -> bool {
        let Regarding::Service(service) = &event.regarding else {
            return true;
        };
        if !is_seen_by_all(event.reason) {
            return true;
        }
        let part = SPEAKERS / self.cluster.estimate().min(MOST_NODES);
        let hash = hash(&(&self.node, &service.namespace, &service.name, event.reason));
        let place = u32::try_from(hash >> u32::BITS).unwrap_or(u32::MAX);
        f64::from(place) / f64::from(u32::MAX) < part
    }
}

/// Whether the reason lies in objects and configuration, which are the same for all nodes, and not
/// in one node.
fn is_seen_by_all(reason: &str) -> bool {
    matches!(
        reason,
        reason::INVALID_SERVICE
            | reason::ADDRESS_CONFLICT
            | reason::OVER_BUDGET
            | reason::MORE_PROBLEMS
            | reason::ADDRESS_NOT_BOUND
            | reason::REFUSED_BY_KERNEL
            | reason::SETTING_NOT_POSSIBLE
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::action;
    use kpr_core::model::ServiceName;

    fn speakers(nodes: usize, event: &Event) -> usize {
        let cluster = ClusterSize::default();
        let names = || (0..nodes).map(|node| format!("worker-{node}"));
        names().for_each(|name| cluster.saw(&name));
        let share = |name: String| Share {
            node: name.into(),
            cluster: cluster.clone(),
        };
        names()
            .filter(|name| share(name.clone()).has(event))
            .count()
    }

    fn about(service: u32, reason: &'static str) -> Event {
        let service = ServiceName::new("tenant", format!("web-{service}"));
        Event::service(service, reason, action::PROGRAM, "")
    }

    #[test]
    fn a_few_of_many_nodes_speak_of_each_service() {
        let counts: Vec<usize> = (0..30)
            .map(|n| speakers(5_000, &about(n, reason::INVALID_SERVICE)))
            .collect();
        let all: usize = counts.iter().sum();
        assert!((75..=300).contains(&all), "{counts:?}");
        let silent = counts.iter().filter(|count| **count == 0).count();
        assert!(silent <= 2, "{counts:?}");
    }

    #[test]
    fn in_a_small_cluster_and_of_themselves_all_speak() {
        assert_eq!(speakers(4, &about(1, reason::INVALID_SERVICE)), 4);
        assert_eq!(
            speakers(500, &about(1, reason::LOCALHOST_NODE_PORT_FAILED)),
            500
        );
        assert_eq!(speakers(500, &Event::starting()), 500);
    }
}
