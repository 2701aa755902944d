// SPDX-License-Identifier: Apache-2.0
//! PURE: what a Service asks of IPVS mode and does not get here: said in Events and in the log.

use std::fmt;
use std::sync::Arc;

use crate::model::ipvs_options::Scheduler;

/// Something that a Service's annotations ask for and that cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// The kernel lacks the scheduler.
    SchedulerMissing { wanted: Scheduler, used: Arc<str> },
    /// Only `sh` and `mh` have flags.
    NoSchedulerFlags { scheduler: Arc<str> },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SchedulerMissing { wanted, used } => write!(
                f,
                "this node's kernel has no scheduler {wanted} (module ip_vs_{wanted}); {used} is used"
            ),
            Self::NoSchedulerFlags { scheduler } => write!(
                f,
                "scheduler {scheduler} has no flags, only sh and mh have; they are ignored"
            ),
        }
    }
}
