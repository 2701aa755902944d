// SPDX-License-Identifier: Apache-2.0
//! Properties of planning and applying, over random Services and slices that share addresses and
//! ports, in random order, in both families.

pub(super) mod world;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::plan::ipvs::planner::tests::daemons::daemon;
use crate::plan::ipvs::set::{DEFAULT_MAX_ENTRIES, lists_node_port};
use crate::plan::mode::{Drains as _, Planner as _};
use crate::plan::testing::Proxy;
use crate::plan::testing::fake::Fault;
use world::{Foreign, event, kernel};

/// What happens to a running proxy.
#[derive(Clone, Debug)]
enum Happening {
    Event(Box<Event>),
    Sync,
    /// All draining servers become idle, or only the first.
    Drain(bool),
    /// The node gains or loses an address.
    NodeAddress(bool),
    /// Others get or lose addresses that Services claim.
    Holders(u8),
    /// Another program changes the kernel, and an audit finds out.
    Drift(u8),
    /// The operator wants sync daemons of this number, or none.
    Daemons(Option<u32>),
    /// So many seconds pass.
    Time(u8),
    Restart,
}

fn happening(family: IpFamily) -> impl Strategy<Value = Happening> {
    prop_oneof![
        10 => event(family).prop_map(|event| Happening::Event(Box::new(event))),
        5 => Just(Happening::Sync),
        2 => any::<bool>().prop_map(Happening::Drain),
        1 => any::<bool>().prop_map(Happening::NodeAddress),
        1 => any::<u8>().prop_map(Happening::Holders),
        1 => any::<u8>().prop_map(Happening::Drift),
        3 => (0..40_u8).prop_map(Happening::Time),
        1 => proptest::option::of(0..2_u32).prop_map(Happening::Daemons),
        1 => Just(Happening::Restart),
    ]
}

fn family() -> impl Strategy<Value = IpFamily> {
    prop_oneof![Just(IpFamily::V4), Just(IpFamily::V6)]
}

/// A family, the initial state of its kernel, and the events.
fn story() -> impl Strategy<Value = (IpFamily, State, Vec<Happening>)> {
    family().prop_flat_map(|family| (Just(family), kernel(family), vec(happening(family), 1..25)))
}

/// Takes in the event; `sync` makes the rounds.
fn happen(proxy: &mut Proxy, what: Happening, sync: &mut impl FnMut(&mut Proxy)) {
    match what {
        Happening::Event(event) => proxy.take_in([*event]),
        Happening::Sync => sync(proxy),
        Happening::Drain(all) => {
            let waiting = proxy.planner.draining().iter().copied();
            let idle = waiting.take(if all { usize::MAX } else { 1 }).collect();
            proxy.drain(&idle);
        }
        Happening::NodeAddress(is_there) => {
            let mut context = proxy.planner.context().clone();
            let address = world::spare_node_address(context.family);
            for addresses in [
                &mut context.node_addresses,
                &mut context.node_port_addresses,
            ] {
                if is_there {
                    addresses.insert(address);
                } else {
                    addresses.remove(&address);
                }
            }
            proxy.planner.set_context(context, &proxy.tracker).unwrap();
        }
        Happening::Holders(what) => {
            let family = proxy.planner.context().family;
            proxy.set_holders(world::holders(family, what));
        }
        Happening::Drift(what) => {
            world::drift(&mut proxy.kernel.state, what);
            proxy.observe();
        }
        Happening::Daemons(sync_id) => {
            let mut context = proxy.planner.context().clone();
            context.sync = sync_id.map(daemon);
            proxy.planner.set_context(context, &proxy.tracker).unwrap();
        }
        Happening::Time(seconds) => proxy.pass(Duration::from_secs(seconds.into())),
        Happening::Restart => {
            // A restart loses what the kernel does not show.
            sync(proxy);
            if recognizable(proxy) != *proxy.planner.draining() {
                proxy.drain_all();
            }
            *proxy = proxy.restarted();
        }
    }
}

/// The draining servers that a new process must find in the kernel: those of wanted virtual
/// servers, those at a bound address, and those of node ports. (At an address of the node nothing
/// else distinguishes a virtual server of a deleted Service from a foreign one.)
fn recognizable(proxy: &Proxy) -> BTreeSet<RealServerOf> {
    let is_shown = |vs: &VirtualServerKey| {
        let address = vs.address();
        proxy.planner.desired().virtual_server(vs).is_some()
            || address.is_some_and(|address| proxy.kernel.state.addresses.contains(&address))
            || lists_node_port(&proxy.kernel.state, vs) == Some(true)
    };
    let draining = proxy.planner.draining().iter();
    draining.filter(|(vs, _)| is_shown(vs)).copied().collect()
}

/// A proxy of a kernel without Services.
fn start(family: IpFamily, state: State) -> Proxy {
    Proxy::start(context(family), tracker(vec![], vec![]), state)
}

/// The state of the kernel once all has drained, if a proxy starts with the final objects on the
/// initial kernel.
fn fresh(proxy: &Proxy, state: State) -> State {
    let mut fresh = proxy.restarted();
    fresh.kernel.state = state;
    fresh.observe();
    settle(&mut fresh);
    fresh.kernel.state
}

/// Ends in a kernel in which nothing drains any more.
fn settle(proxy: &mut Proxy) {
    proxy.sync();
    proxy.drain_all();
    while proxy.planner.time_due().is_some() {
        proxy.pass(Duration::from_secs(5));
        proxy.sync();
    }
    assert!(proxy.planner.draining().is_empty());
    assert!(!proxy.planner.is_pending());
}

/// A valid kernel of ours, however it came about: each wanted object exists, and no unwanted one.
fn holds_what_is_desired(proxy: &Proxy, foreign: &Foreign) {
    let desired = proxy.planner.desired();
    let state = &proxy.kernel.state;
    let ours = state
        .virtual_servers
        .iter()
        .filter(|(key, _)| !foreign.virtual_servers.contains_key(key));
    let present: Vec<_> = ours
        .map(|(key, state)| (*key, state.server.clone(), state.real_servers.clone()))
        .collect();
    let wanted: Vec<_> = desired
        .virtual_servers()
        .map(|(key, wanted)| (*key, wanted.server.clone(), wanted.real_servers.clone()))
        .collect();
    assert_eq!(present, wanted);
    let addresses: BTreeSet<_> = desired.addresses().copied().collect();
    assert_eq!(state.addresses, addresses);
    for id in SetId::ALL {
        let set = &state.sets[&id.name(proxy.planner.context().family)];
        let wanted: BTreeSet<_> = desired.entries(id).copied().collect();
        assert_eq!(set.entries, wanted, "{id:?}");
        assert_eq!(set.max_entries, DEFAULT_MAX_ENTRIES);
    }
}

/// No address is bound without the entry that rejects its unknown ports.
fn is_safe(state: &State, family: IpFamily) {
    let set = state.sets.get(&SetId::IpvsIps.name(family));
    for address in &state.addresses {
        let entry = SetEntry::Ip(*address);
        assert!(
            set.is_some_and(|set| set.entries.contains(&entry)),
            "{address}"
        );
    }
}

proptest! {
    /// Small plans lead where one full plan leads: to the same Desired and, once all has drained,
    /// to the same kernel. Nothing else is normalised. Every plan passes `check` (in `Proxy::sync`
    /// and `Proxy::drain`); after each round another full plan and that of a new process are empty,
    /// and the new process waits for the same servers as far as it can know them.
    #[test]
    fn incremental_is_full((family, state, story) in story()) {
        let foreign = Foreign::of(&state);
        let mut proxy = start(family, state.clone());
        let mut sync = |proxy: &mut Proxy| {
            proxy.sync();
            let next = proxy.restarted();
            is_empty(&next.planner.plan());
            assert!(next.planner.draining().is_subset(proxy.planner.draining()));
            assert!(recognizable(proxy).is_subset(next.planner.draining()));
            assert_eq!(next.planner.desired(), proxy.planner.desired());
            proxy.observe();
            is_empty(&proxy.planner.plan());
            proxy.sync();
            foreign.is_in(&proxy.kernel.state);
        };
        for what in story {
            happen(&mut proxy, what, &mut sync);
        }
        sync(&mut proxy);
        settle(&mut proxy);
        holds_what_is_desired(&proxy, &foreign);
        foreign.is_in(&proxy.kernel.state);
        assert_eq!(proxy.kernel.state, fresh(&proxy, state));
    }

    /// With steps that fail, take effect unnoticed or take effect in part, later rounds lead to the
    /// same kernel; at no time is an address unprotected or a foreign object touched.
    #[test]
    fn failures_do_not_matter_in_the_end(
        (family, state, story) in story(),
        dice in vec(any::<u8>(), 200),
    ) {
        let foreign = Foreign::of(&state);
        let mut dice = dice.into_iter().cycle();
        let mut fault = move || match dice.next() {
            Some(0..=9) => Some(Fault::Refused),
            Some(10..=19) => Some(Fault::AnswerLost),
            Some(20..=29) => Some(Fault::Partial),
            _ => None,
        };
        let mut proxy = start(family, state.clone());
        // A kernel that was unsafe from the start is not our fault.
        let mut was_synced = false;
        let mut sync = |proxy: &mut Proxy| {
            proxy.try_sync(|_| fault());
            foreign.is_in(&proxy.kernel.state);
            was_synced |= !proxy.planner.is_pending();
            if was_synced {
                is_safe(&proxy.kernel.state, family);
            }
        };
        for what in story {
            // What only the lost belief knew is not found again; and drift makes a kernel unsafe.
            if !matches!(what, Happening::Restart | Happening::Drift(_)) {
                happen(&mut proxy, what, &mut sync);
            }
        }
        sync(&mut proxy);
        // As an audit does: what was refused twice waits for it.
        proxy.observe();
        settle(&mut proxy);
        holds_what_is_desired(&proxy, &foreign);
        assert_eq!(proxy.kernel.state, fresh(&proxy, state));
        assert!(proxy.restarted().sync().is_empty());
    }

    /// A change of one endpoint of one Service affects only that endpoint, whatever else exists.
    #[test]
    fn one_endpoint_is_what_its_plan_is_about(
        family in family(),
        events in vec(world::any_family().prop_flat_map(event), 0..12),
        services in 0..30_u16,
    ) {
        let mut proxy = start(family, State::default());
        proxy.take_in(events);
        proxy.take_in((0..services).flat_map(|n| world::bystander(family, n)));
        proxy.take_in(world::subject(family, 1));
        proxy.sync();
        let before = proxy.planner.desired().by_port().len();
        proxy.take_in(world::subject(family, 2));
        let frontends = 1 + proxy.planner.context().node_port_addresses.len();
        prop_assert!(proxy.planner.dirty.virtual_servers.len() <= frontends);
        prop_assert!(proxy.planner.dirty.addresses.is_empty());
        prop_assert!(proxy.planner.dirty.entries.is_empty());
        prop_assert_eq!(proxy.planner.desired().by_port().len(), before);
        let plan = proxy.sync();
        prop_assert_eq!(plan.len(), frontends);
        let endpoint = world::subject_endpoint(family, 1);
        for step in plan.steps() {
            prop_assert!(
                matches!(step, Step::AddRealServer { key, .. } if key.address == endpoint),
                "{}", step
            );
        }
    }
}

#[track_caller]
fn is_empty(plan: &Plan) {
    assert!(plan.is_empty(), "unexpected plan:\n{plan}");
}
