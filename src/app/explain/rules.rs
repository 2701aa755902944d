// SPDX-License-Identifier: Apache-2.0
//! The rules of the kernel that concern one place, out of what `iptables-save` prints of a table.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kpr_core::plan::explain::Place;

/// Rules shown of one place.
const MOST: usize = 40;

/// The rules that match the place, and those of the chains that they lead to, in the order of the
/// output.
pub(super) fn of(saved: &str, place: Place, service: &str) -> Vec<String> {
    let rules: Vec<(&str, &str)> = saved
        .lines()
        .filter_map(|line| line.strip_prefix("-A ")?.split_once(' '))
        .filter(|(chain, _)| chain.starts_with("KUBE-"))
        .collect();
    let is_first = |rule: &str| matches(rule, place, service);
    let mut chains: BTreeSet<&str> = BTreeSet::new();
    let first = rules.iter().filter(|(_, rule)| is_first(rule));
    chains.extend(first.filter_map(|(_, rule)| target(rule)));
    // Chains of chains: external, by policy, parts of a long list, endpoint.
    loop {
        let inside = rules.iter().filter(|(chain, _)| chains.contains(chain));
        let more: BTreeSet<&str> = inside.filter_map(|(_, rule)| target(rule)).collect();
        let known = chains.len();
        chains.extend(more);
        if chains.len() == known {
            break;
        }
    }
    rules
        .iter()
        .filter(|(chain, rule)| is_first(rule) || chains.contains(chain))
        .map(|(chain, rule)| format!("-A {chain} {rule}"))
        .take(MOST)
        .collect()
}

/// Whether a rule names the address and port, or, for a node port, the port and the Service.
fn matches(rule: &str, place: Place, service: &str) -> bool {
    let words: Vec<&str> = rule.split(' ').collect();
    let after = |option: &str| {
        let mut pairs = words.windows(2);
        pairs.find_map(|pair| match pair {
            [name, value] if *name == option => Some(*value),
            _ => None,
        })
    };
    let protocol = place.protocol.to_string().to_lowercase();
    let has_port = after("--dport") == Some(place.port.to_string().as_str())
        && after("-p") == Some(protocol.as_str());
    let length = match place.address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    match after("-d") {
        Some(address) => has_port && address == format!("{}/{length}", place.address),
        None => has_port && rule.contains(service),
    }
}

/// The chain of a Service that a rule leads to.
fn target(rule: &str) -> Option<&str> {
    let (_, target) = rule.rsplit_once("-j ")?;
    let target = target.split(' ').next()?;
    [
        "KUBE-SVC-",
        "KUBE-SVL-",
        "KUBE-EXT-",
        "KUBE-FW-",
        "KUBE-SEP-",
    ]
    .iter()
    .any(|prefix| target.starts_with(prefix))
    .then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kpr_core::model::Protocol;

    const SAVED: &str = "\
*nat
:KUBE-SVC-A - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment \"ns/web cluster IP\" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SERVICES -d 10.96.0.1/32 -p udp -m comment --comment \"ns/web cluster IP\" -m udp --dport 80 -j KUBE-SVC-B
-A KUBE-NODEPORTS -p tcp -m comment --comment \"ns/web\" -m tcp --dport 30080 -j KUBE-EXT-A
-A KUBE-EXT-A -j KUBE-SVC-A
-A KUBE-SVC-A -p tcp -j DNAT --to-destination 10.1.0.1:8080
-A KUBE-SVC-B -p udp -j DNAT --to-destination 10.1.0.1:8080
COMMIT
";

    fn found(socket: &str) -> Vec<String> {
        let socket: std::net::SocketAddr = socket.parse().unwrap();
        let place = Place {
            address: socket.ip(),
            port: socket.port(),
            protocol: Protocol::Tcp,
        };
        let chains = of(SAVED, place, "ns/web").into_iter();
        chains
            .map(|rule| rule.split(' ').nth(1).unwrap().to_owned())
            .collect()
    }

    #[test]
    fn rules_of_a_place_lead_to_its_endpoints() {
        assert_eq!(found("10.96.0.1:80"), ["KUBE-SERVICES", "KUBE-SVC-A"]);
        assert_eq!(
            found("192.0.2.1:30080"),
            ["KUBE-NODEPORTS", "KUBE-EXT-A", "KUBE-SVC-A"]
        );
        assert_eq!(found("10.96.0.1:81"), [""; 0]);
    }
}
