// SPDX-License-Identifier: Apache-2.0
//! Marks follow from the set of claims, not from the order in which they appeared.

use proptest::prelude::*;

use super::*;
use crate::plan::ipvs::mark::bits_of;

fn name(service: &str, protocol: Protocol) -> ServicePortName {
    ServicePortName {
        service: ServiceName::new("ns", service),
        port: "".into(),
        protocol,
    }
}

fn low() -> MarkRange {
    MarkRange::beside(0x4000)
}

#[test]
fn marks_stay_clear_of_the_masquerade_bit() {
    for bit in 0..32 {
        let masquerade = 1 << bit;
        let range = MarkRange::beside(masquerade);
        for slot in [0, 1, 0x07ff, 0x0fff] {
            let mark = range.mark(slot);
            assert!(range.contains(mark), "{mark:#x}");
            assert_eq!(mark & masquerade, 0, "{mark:#x}");
            assert!(!range.contains(mark | masquerade), "{mark:#x}");
            assert_eq!(mark & range.foreign(), 0, "{mark:#x}");
            assert_eq!(bits_of(mark), !range.foreign(), "{mark:#x}");
        }
    }
    assert_eq!((low().value(), low().mask()), (0x1000, 0xffff_f000));
    assert!(!low().contains(0) && !low().contains(1) && !low().contains(0x0fff));
}

/// portmap masquerades 0x2000, kube-proxy 0x4000, kubelet drops 0x8000, kube-router marks with
/// 0x10000 and 0x20000, Calico with 0xffff0000.
#[test]
fn marks_have_no_bit_that_others_are_known_to_use() {
    for slot in 0..=0x0fff {
        assert_eq!(low().mark(slot) & 0xffff_e000, 0);
    }
}

#[test]
fn marks_of_earlier_versions_are_known() {
    let known = [
        (0x2000, Protocol::Tcp),
        (0x3000, Protocol::Udp),
        (0x3fff, Protocol::Sctp),
        (0x2000_0000, Protocol::Tcp),
    ];
    for (mark, wanted) in known {
        assert_eq!(protocol(mark), Some(wanted), "{mark:#x}");
    }
    assert_eq!(protocol(0x4000), None);
    assert_eq!(protocol(0x0010_2000), None);
}

#[test]
fn a_mark_determines_its_protocol() {
    for range in [low(), MarkRange::beside(1)] {
        for wanted in Protocol::ALL {
            let mut marks = Marks::new(range);
            let port = name("web", wanted);
            marks.replace_service(&port.service, 0, &[port.clone()].into());
            let mark = marks.of(&port).unwrap();
            assert_eq!(protocol(mark), Some(wanted), "{mark:#x}");
        }
    }
    assert_eq!(protocol(7), None);
    assert_eq!(protocol(0x2000_0001), None);
}

#[test]
fn a_service_that_is_made_anew_has_its_mark_again() {
    let mut marks = Marks::new(low());
    let port = name("web", Protocol::Tcp);
    let ports = BTreeSet::from([port.clone()]);
    marks.replace_service(&port.service, 1, &ports);
    let mark = marks.of(&port);
    assert!(mark.is_some());
    marks.replace_service(&port.service, 1, &BTreeSet::new());
    assert_eq!(marks.of(&port), None);
    marks.replace_service(&port.service, 2, &ports);
    assert_eq!(marks.of(&port), mark);
}

#[test]
fn a_service_has_a_share_and_moves_nobody_to_get_more() {
    let of = |service: &str, port: usize| ServicePortName {
        port: format!("p{port}").into(),
        ..name(service, Protocol::Tcp)
    };
    let mut marks = Marks::new(low());
    for victim in 0..500 {
        let port = of(&format!("victim-{victim}"), 0);
        marks.replace_service(&port.service, 1_000, &[port.clone()].into());
    }
    let before = marks.clone();
    // It is the older one.
    let hungry: BTreeSet<_> = (0..4_096).map(|port| of("hungry", port)).collect();
    let service = ServiceName::new("ns", "hungry");
    assert_eq!(marks.replace_service(&service, 1, &hungry), [].into());
    for victim in 0..500 {
        let port = of(&format!("victim-{victim}"), 0);
        assert_eq!(marks.of(&port), before.of(&port), "{port}");
    }
    let served = hungry.iter().filter(|port| marks.of(port).is_some());
    assert_eq!(served.count(), SHARE);
    assert_eq!(marks.beyond_share().count(), 4_096 - SHARE);
    // A restart finds the same.
    let mut anew = Marks::new(low());
    anew.replace_service(&service, 1, &hungry);
    for victim in (0..500).rev() {
        let port = of(&format!("victim-{victim}"), 0);
        anew.replace_service(&port.service, 1_000, &[port.clone()].into());
    }
    assert_eq!(anew, marks);
    let few = hungry.iter().take(SHARE).cloned().collect();
    marks.replace_service(&service, 2_000, &few);
    assert_eq!(marks.beyond_share().count(), 0);
    marks.replace_service(&service, 2_000, &BTreeSet::new());
    assert_eq!(marks, before);
}

/// One port of some namespace.
fn port_in(namespace: &str, service: usize, port: usize) -> ServicePortName {
    ServicePortName {
        service: ServiceName::new(namespace, format!("s{service}")),
        port: format!("p{port}").into(),
        protocol: Protocol::Tcp,
    }
}

fn claim_all(marks: &mut Marks, created: i64, ports: &[ServicePortName]) -> BTreeSet<ServiceName> {
    marks.replace_service(&ports[0].service, created, &ports.iter().cloned().collect())
}

/// Many Services that each have no more than a share, all older than the victims.
#[test]
fn a_namespace_has_a_share_and_moves_nobody_to_get_more() {
    let mut marks = Marks::new(low());
    let victims: Vec<_> = (0..500)
        .map(|n| port_in(&format!("victims-{}", n / 100), n, 0))
        .collect();
    for victim in &victims {
        claim_all(&mut marks, 1_000, std::slice::from_ref(victim));
    }
    let before = marks.clone();
    let hungry = |service| -> Vec<_> {
        (0..64)
            .map(|port| port_in("hungry", service, port))
            .collect()
    };
    for service in 0..64 {
        claim_all(&mut marks, 1, &hungry(service));
    }
    for victim in &victims {
        assert_eq!(marks.of(victim), before.of(victim), "{victim}");
    }
    // It has what is left.
    let all: Vec<_> = (0..64).flat_map(hungry).collect();
    let served = all.iter().filter(|port| marks.of(port).is_some()).count();
    assert_eq!(served, 0x800 - victims.len());
    // A newcomer is served too.
    let late = port_in("late", 0, 0);
    claim_all(&mut marks, 5_000, std::slice::from_ref(&late));
    assert!(marks.of(&late).is_some());
    marks.replace_service(&late.service, 5_000, &BTreeSet::new());
    // A restart finds the same.
    let mut anew = Marks::new(low());
    for service in (0..64).rev() {
        claim_all(&mut anew, 1, &hungry(service));
    }
    for victim in victims.iter().rev() {
        claim_all(&mut anew, 1_000, std::slice::from_ref(victim));
    }
    assert_eq!(anew, marks);
    for service in 0..64 {
        marks.replace_service(&hungry(service)[0].service, 1, &BTreeSet::new());
    }
    assert_eq!(marks, before);
}

/// The slots if the oldest chooses first.
fn expected(table: &Table, claims: &BTreeSet<Claim>) -> BTreeMap<ServicePortName, Option<u16>> {
    let mut taken = BTreeSet::new();
    let mut expected = BTreeMap::new();
    for (_, name) in claims {
        let mut place = table.home(name);
        let mut found = None;
        for _ in 0..table.size {
            if taken.insert(place) {
                found = Some(place);
                break;
            }
            place = table.next(place);
        }
        expected.insert(name.clone(), found);
    }
    expected
}

proptest! {
    /// Namespaces that pass their share and come below it again.
    #[test]
    fn marks_follow_from_the_claims_alone(
        changes in proptest::collection::vec((0..2_usize, 0..6_usize, 0..3_i64, 0..70_usize), 1..30),
    ) {
        let mut marks = Marks::new(low());
        let mut wanted = BTreeMap::new();
        for (namespace, service, created, ports) in changes {
            let ports: BTreeSet<_> =
                (0..ports).map(|port| port_in(&format!("ns{namespace}"), service, port)).collect();
            let name = ServiceName::new(format!("ns{namespace}"), format!("s{service}"));
            let before = marks.clone();
            let moved = marks.replace_service(&name, created, &ports);
            wanted.insert(name.clone(), (created, ports));
            // Every other Service with another mark than before was reported.
            for (other, (_, ports)) in &wanted {
                let is_same = ports.iter().all(|port| marks.of(port) == before.of(port));
                prop_assert!(is_same || *other == name || moved.contains(other), "{}", other);
            }
        }
        let mut anew = Marks::new(low());
        for (name, (created, ports)) in wanted.iter().rev() {
            anew.replace_service(name, *created, ports);
        }
        prop_assert_eq!(anew, marks);
    }

    /// With so few slots that they collide and run out.
    #[test]
    fn the_oldest_chooses_first_whatever_the_order(
        changes in proptest::collection::vec((0..14_u8, 0..3_i64, any::<bool>()), 1..60),
    ) {
        let mut table = Table::new(3, 8);
        let mut claims: BTreeMap<ServicePortName, i64> = BTreeMap::new();
        for (number, created, is_wanted) in changes {
            let port = name(&format!("s{number}"), Protocol::Tcp);
            let before = table.claims.clone();
            let mut moved = BTreeSet::new();
            table.withdraw(&port, &mut moved);
            claims.remove(&port);
            if is_wanted {
                claims.insert(port.clone(), created);
                table.claim((created, port.clone()), &mut moved);
            }
            let in_order: BTreeSet<Claim> =
                claims.iter().map(|(name, created)| (*created, name.clone())).collect();
            let found: BTreeMap<_, _> =
                table.claims.iter().map(|(name, (_, place))| (name.clone(), *place)).collect();
            prop_assert_eq!(&found, &expected(&table, &in_order));
            // Every claim with another slot than before was reported.
            for (name, (_, place)) in &table.claims {
                let is_same = before.get(name).is_some_and(|(_, before)| before == place);
                prop_assert!(is_same || *name == port || moved.contains(&name.service));
            }
        }
    }
}
