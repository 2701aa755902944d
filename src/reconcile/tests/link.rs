// SPDX-License-Identifier: Apache-2.0
//! What others do to our link is repaired at once, and only they cause a look at it.

use super::*;

impl Fixture {
    fn gone(&mut self, addresses: &[&str], may_be_all: bool) {
        let addresses = addresses.iter().map(|address| ip(address)).collect();
        let gone = Gone {
            addresses,
            may_be_all,
        };
        self.reconciler.take_in(Input::AddressesGone(gone));
        self.work();
    }

    fn looked(&self) -> Vec<ObserveScope> {
        std::mem::take(&mut self.lock().observations)
    }
}

#[test]
fn an_address_that_others_delete_is_bound_again_at_once() {
    let mut fixture = Fixture::programmed();
    assert!(
        fixture
            .lock()
            .kernel
            .state
            .addresses
            .remove(&ip("10.96.0.1"))
    );
    fixture.gone(&["10.96.0.1"], false);
    assert_eq!(fixture.looked(), [ObserveScope::Link]);
    assert_eq!(fixture.applied(), ["add address 10.96.0.1 to kube-ipvs0"]);
    assert_eq!(*fixture.watcher.drift.lock().unwrap(), 1);
}

#[test]
fn a_link_that_others_delete_is_made_again_with_its_addresses() {
    let mut fixture = Fixture::programmed();
    fixture.lock().kernel.state.node.link_exists = false;
    fixture.lock().kernel.state.addresses.clear();
    fixture.gone(&[], true);
    assert_eq!(
        fixture.applied(),
        [
            "create link kube-ipvs0",
            "add address 10.96.0.1 to kube-ipvs0"
        ]
    );
}

#[test]
fn addresses_of_others_and_those_that_we_delete_cause_no_look() {
    let mut fixture = Fixture::programmed();
    fixture.gone(&["192.0.2.7"], false);
    fixture.model(Event::ServiceDeleted(service_name("ns/web")));
    fixture.work();
    fixture.wait(Duration::from_secs(2));
    assert!(fixture.lock().kernel.state.addresses.is_empty());
    fixture.looked();
    fixture.gone(&["10.96.0.1"], false);
    assert_eq!(fixture.looked(), []);
}

#[test]
fn a_false_alarm_changes_nothing() {
    let mut fixture = Fixture::programmed();
    fixture.gone(&[], true);
    assert_eq!(fixture.looked(), [ObserveScope::Link]);
    assert_eq!(fixture.applied(), Vec::<String>::new());
    assert_eq!(*fixture.watcher.drift.lock().unwrap(), 0);
}

#[test]
fn an_address_that_lost_its_route_is_bound_anew() {
    let mut fixture = Fixture::programmed();
    fixture.lock().undelivered = [ip("10.96.0.1")].into();
    fixture.gone(&["10.96.0.1"], false);
    assert_eq!(fixture.applied(), ["add address 10.96.0.1 to kube-ipvs0"]);
}

#[test]
fn the_route_of_an_ipv6_address_may_come_later() {
    let address = ip("fd00:96::1");
    let found = LinkState {
        exists: true,
        addresses: [address].into(),
        undelivered: [address].into(),
    };
    let mut watch = family::link::LinkWatch::default();
    assert_eq!(watch.served(&found, IpFamily::V6), [address].into());
    assert!(watch.served(&found, IpFamily::V6).is_empty());
    // It was bound anew.
    assert_eq!(watch.served(&found, IpFamily::V6), [address].into());
    assert!(watch.served(&found, IpFamily::V4).is_empty());
}
