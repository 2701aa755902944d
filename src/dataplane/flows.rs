// SPDX-License-Identifier: Apache-2.0
//! Connects the planner's stale flows to the entries of [`super::conntrack`].

use crate::dataplane::conntrack::{self, Client, Entry, EntryFilter};
use kpr_core::plan::conntrack::flows::{Cleanup, Filter, Flow};

/// Deletes the stale flows, and returns how many there were.
pub fn delete_stale(client: &mut Client, cleanup: &Cleanup) -> Result<usize, conntrack::Error> {
    let filters: Vec<EntryFilter> = cleanup.filters().iter().map(wire_filter).collect();
    client.delete(cleanup.family, &filters, &|entry| {
        cleanup.is_stale(&flow(entry))
    })
}

const fn wire_filter(filter: &Filter) -> EntryFilter {
    EntryFilter {
        address: filter.address,
        port: filter.port,
    }
}

const fn flow(entry: &Entry) -> Flow {
    Flow {
        destination: entry.destination,
        answerer: entry.reply_source,
    }
}
