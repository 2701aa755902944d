// SPDX-License-Identifier: Apache-2.0
//! PURE: slow start. A real server that joins others begins with a tenth of its weight and gets the
//! rest in equal steps.
//!
//! A step is a fact, not a matter of the time: it is taken by `Ramps::pass`, and until then every
//! plan wants the same weight. A new process continues at the step that it finds in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::plan::ipvs::object::{RealServer, RealServerKey, RealServers, VirtualServerKey};
use crate::plan::ipvs::planner::RealServerOf;

/// Number of steps up to the whole weight. Weights of Services with slow start are multiplied by
/// it, so that each step is a whole number.
pub const STEPS: u32 = 10;

/// Steps are taken together, so often.
const PERIOD: Duration = Duration::from_secs(1);

/// Maximum number of real servers that take a step together, of each family; others take theirs
/// with the next ones. The kernel's other work of the node matters more.
pub const AT_ONCE: usize = 500;

/// Whether a scheduler gives real servers connections by weight, one by one. Others ignore weights,
/// take them for a number of connections (`ovf`, `lblc`), or would move clients at each step
/// (`sh`, `mh`).
pub fn suits(scheduler: &str) -> bool {
    matches!(scheduler, "wrr" | "wlc" | "sed" | "nq" | "twos")
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Ramps {
    now: Duration,
    /// When steps were last taken.
    last: Option<Duration>,
    by_server: BTreeMap<RealServerOf, Ramp>,
    /// By the time of the next step.
    queue: BTreeSet<(Duration, RealServerOf)>,
}

#[derive(Clone, Copy, Debug)]
struct Ramp {
    /// 1 to [`STEPS`] - 1.
    step: u32,
    due: Duration,
    pace: Duration,
}

impl Ramps {
    /// The step of a real server that has not got its whole weight yet.
    pub(super) fn step_of(&self, server: &RealServerOf) -> Option<u32> {
        self.by_server.get(server).map(|ramp| ramp.step)
    }

    /// A wanted real server of this weight is in the kernel with another one now: it is at the step
    /// that the weight shows. With its whole weight the ramp is over.
    pub(super) fn found(
        &mut self,
        server: RealServerOf,
        wanted: RealServer,
        weight: u32,
        length: Duration,
    ) {
        if weight >= wanted.weight {
            self.end(&server);
            return;
        }
        let Some(step) = step_of_weight(weight, wanted.weight) else {
            return;
        };
        if self.by_server.contains_key(&server) {
            return;
        }
        let pace = length / (STEPS - 1);
        let due = self.now + pace;
        self.queue.insert((due, server));
        self.by_server.insert(server, Ramp { step, due, pace });
    }

    fn end(&mut self, server: &RealServerOf) {
        if let Some(ramp) = self.by_server.remove(server) {
            self.queue.remove(&(ramp.due, *server));
        }
    }

    /// Ends the ramps of a virtual server, except for those of real servers that still ramp; these
    /// go on in steps of the present length.
    pub(super) fn retain(
        &mut self,
        vs: &VirtualServerKey,
        length: Duration,
        still: impl Fn(&RealServerKey) -> bool,
    ) {
        if self.by_server.is_empty() {
            return;
        }
        let first = RealServerKey {
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: 0,
        };
        let of = self.by_server.range_mut((*vs, first)..);
        let pace = length / (STEPS - 1);
        let mut over = Vec::new();
        for (server, ramp) in of.take_while(|((of, _), _)| of == vs) {
            if !still(&server.1) {
                over.push(*server);
            } else if ramp.pace != pace {
                self.queue.remove(&(ramp.due, *server));
                (ramp.pace, ramp.due) = (pace, self.now + pace);
                self.queue.insert((ramp.due, *server));
            }
        }
        for server in &over {
            self.end(server);
        }
    }

    /// Takes the steps that are due, as many as may be taken together. Returns the virtual servers
    /// that changed.
    pub(super) fn pass(&mut self, now: Duration) -> BTreeSet<VirtualServerKey> {
        self.now = now;
        let mut changed = BTreeSet::new();
        if self.due().is_none_or(|due| due > now) {
            return changed;
        }
        self.last = Some(now);
        for _ in 0..AT_ONCE {
            let Some((due, server)) = self.queue.first().copied().filter(|(due, _)| *due <= now)
            else {
                break;
            };
            self.queue.pop_first();
            changed.insert(server.0);
            let Some(ramp) = self.by_server.get_mut(&server) else {
                continue;
            };
            let late = now.saturating_sub(due).as_nanos() / ramp.pace.as_nanos().max(1);
            let late = u32::try_from(late).unwrap_or(STEPS);
            ramp.step = ramp.step.saturating_add(late).saturating_add(1);
            if ramp.step >= STEPS {
                self.by_server.remove(&server);
            } else {
                ramp.due = due + ramp.pace * (late + 1);
                self.queue.insert((ramp.due, server));
            }
        }
        changed
    }

    /// When [`Self::pass`] takes the next steps.
    pub(super) fn due(&self) -> Option<Duration> {
        let (due, _) = self.queue.first()?;
        let soonest = self.last.map_or(Duration::ZERO, |last| last + PERIOD);
        Some(soonest.max(*due))
    }
}

/// The weight at a step.
pub(super) const fn weight_at(step: u32, weight: u32) -> u32 {
    weight / STEPS * step
}

/// The same real servers with weights that need not be divided.
pub(super) fn undivided(servers: &RealServers) -> RealServers {
    let of = |(key, server): (&RealServerKey, &RealServer)| {
        let weight = server.weight / STEPS;
        (*key, RealServer { weight, ..*server })
    };
    servers.iter().map(of).collect()
}

/// The step at which a real server has this part of its weight.
fn step_of_weight(part: u32, weight: u32) -> Option<u32> {
    let one = weight / STEPS;
    let step = part.checked_div(one)?;
    ((1..STEPS).contains(&step) && weight_at(step, weight) == part).then_some(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing::{rs, tcp};

    const LENGTH: Duration = Duration::from_secs(90);

    fn server(n: u16) -> RealServerOf {
        (tcp("10.96.0.1:80"), rs(&format!("10.0.0.1:{n}")))
    }

    fn wanted(weight: u32) -> RealServer {
        RealServer {
            weight,
            ..RealServer::default()
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_whole_weight_is_there_when_the_time_is_over() {
        let mut ramps = Ramps::default();
        ramps.pass(at(100));
        ramps.found(server(1), wanted(30), 3, LENGTH);
        let mut steps = Vec::new();
        while let Some(due) = ramps.due() {
            steps.push((due.as_secs(), ramps.step_of(&server(1))));
            assert_eq!(ramps.pass(due).len(), 1);
        }
        let expected = (1..10).map(|n| (100 + 10 * n, u32::try_from(n).ok()));
        assert_eq!(steps, expected.collect::<Vec<_>>());
        assert_eq!(ramps.step_of(&server(1)), None);
    }

    #[test]
    fn what_is_found_in_the_kernel_goes_on_where_it_is() {
        for (weight, step) in [
            (3, Some(1)),
            (27, Some(9)),
            (30, None),
            (31, None),
            (0, None),
            (4, None),
        ] {
            let mut ramps = Ramps::default();
            ramps.found(server(1), wanted(30), weight, LENGTH);
            assert_eq!(ramps.step_of(&server(1)), step, "{weight}");
        }
        // Of no weight no part can be had.
        let mut ramps = Ramps::default();
        ramps.found(server(1), wanted(5), 1, LENGTH);
        assert_eq!(ramps.due(), None);
    }

    #[test]
    fn another_length_is_that_of_the_next_step() {
        let mut ramps = Ramps::default();
        ramps.found(server(1), wanted(10), 1, LENGTH);
        ramps.pass(at(5));
        ramps.retain(&server(1).0, LENGTH, |_| true);
        assert_eq!(ramps.due(), Some(at(10)));
        ramps.retain(&server(1).0, LENGTH / 5, |_| true);
        assert_eq!(ramps.due(), Some(at(7)));
    }

    #[test]
    fn late_steps_are_taken_together() {
        let mut ramps = Ramps::default();
        ramps.found(server(1), wanted(10), 1, LENGTH);
        ramps.pass(at(35));
        assert_eq!(ramps.step_of(&server(1)), Some(4));
        assert_eq!(ramps.due(), Some(at(40)));
        ramps.pass(at(1_000));
        assert_eq!((ramps.step_of(&server(1)), ramps.due()), (None, None));
    }

    #[test]
    fn so_many_take_a_step_in_a_second_and_no_more() {
        let mut ramps = Ramps::default();
        let many = 2 * AT_ONCE + 1;
        for n in 0..many {
            let vs = tcp(&format!("10.96.{}.{}:80", n / 256, n % 256));
            ramps.found((vs, rs("10.0.0.1:80")), wanted(10), 1, at(9));
        }
        let mut taken = Vec::new();
        let mut now = at(1);
        for _ in 0..3 {
            taken.push(ramps.pass(now).len());
            assert_eq!(ramps.pass(now), BTreeSet::new());
            assert_eq!(ramps.due(), Some(now + PERIOD));
            now += PERIOD;
        }
        assert_eq!(taken, [AT_ONCE; 3]);
    }

    #[test]
    fn what_is_gone_ramps_no_longer() {
        let mut ramps = Ramps::default();
        for n in 1..4 {
            ramps.found(server(n), wanted(10), 1, LENGTH);
        }
        ramps.retain(&server(1).0, LENGTH, |key| *key == server(2).1);
        let steps = [1, 2, 3].map(|n| ramps.step_of(&server(n)));
        assert_eq!(steps, [None, Some(1), None]);
        // One that comes again starts again.
        ramps.retain(&server(1).0, LENGTH, |_| false);
        assert_eq!(ramps.due(), None);
        // Others' are untouched.
        ramps.found(server(1), wanted(10), 1, LENGTH);
        ramps.retain(&tcp("10.96.0.2:80"), LENGTH, |_| false);
        assert_eq!(ramps.step_of(&server(1)), Some(1));
    }
}
