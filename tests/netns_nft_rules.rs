// SPDX-License-Identifier: Apache-2.0
//! The nftables table of IPVS mode's fixed rules in this machine's kernel: our messages make the
//! same table as `nft` makes of the planner's words, it is read as it was written, and what others
//! change of it is heard of. Each test has a network namespace of its own; without root or `nft`
//! the tests pass unless `REQUIRE_NETNS` is set.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests may fail loudly and start programs"
)]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use kpr_core::model::node::LocalDetector;
use kpr_core::model::{IpFamily, Protocol};
use kpr_core::plan::ipvs::Step;
use kpr_core::plan::ipvs::nft_rules::Shown;
use kpr_core::plan::ipvs::set::{SetEntry, SetId, SetSpec, SetType};
use kpr_core::plan::ipvs::static_rules::{edits, fixed_rules};
use kpr_core::plan::ruleset::Ruleset;
use kpr_core::plan::testing::context;
use kpr_core::plan::{Context, IpvsRules, Outcome};
use kube_proxy_rs::dataplane::own_table::{OwnTable, probe};
use nix::sched::{CloneFlags, unshare};

fn in_namespace(test: impl FnOnce()) {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        assert!(
            std::env::var_os("REQUIRE_NETNS").is_none(),
            "no network namespace: {error}"
        );
        println!("skipped, no network namespace: {error}");
        return;
    }
    test();
}

fn nft(arguments: &[&str], input: &str) -> String {
    fed("nft", arguments, input)
}

fn fed(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {input}");
    String::from_utf8(output.stdout).unwrap()
}

/// The rules, chains in the order of their names: `nft` has them in that of their making. The
/// kernel lists elements in an order of its own.
fn list() -> String {
    let listed = nft(&["--stateless", "list", "ruleset"], "");
    let listed = in_order(&listed);
    let listed = listed.trim_end().trim_end_matches('}').trim_end();
    let mut parts: Vec<&str> = listed.split("\n\tchain ").map(str::trim_end).collect();
    parts.sort_unstable();
    parts.join("\n\tchain ")
}

/// With the elements of each set in the order of their text.
fn in_order(listed: &str) -> String {
    let mut ordered = String::new();
    let mut rest = listed;
    while let Some((before, behind)) = rest.split_once("elements = {") {
        let (elements, behind) = behind.split_once('}').unwrap();
        let mut elements: Vec<&str> = elements.split(',').map(str::trim).collect();
        elements.sort_unstable();
        ordered.extend([before, "elements = {", &elements.join(", "), "}"]);
        rest = behind;
    }
    ordered + rest
}

fn contexts() -> Vec<Context> {
    let mut contexts = Vec::new();
    for family in IpFamily::ALL {
        let pods = match family {
            IpFamily::V4 => "10.244.0.0/16",
            IpFamily::V6 => "fd00:10:244::/56",
        };
        for local_detector in [
            LocalDetector::None,
            LocalDetector::Cidr(pods.parse().unwrap()),
            LocalDetector::BridgeInterface("cni0".parse().unwrap()),
            LocalDetector::InterfacePrefix("veth".parse().unwrap()),
        ] {
            for masquerade_all in [false, true] {
                contexts.push(Context {
                    masquerade_all,
                    ipvs_rules: IpvsRules::Nftables,
                    local_detector: local_detector.clone(),
                    ..context(family)
                });
            }
        }
    }
    contexts
}

fn apply(table: &mut OwnTable, steps: &[Step]) {
    let steps: Vec<&Step> = steps.iter().collect();
    let outcomes = table.apply_sets(&steps);
    let failed = outcomes.iter().find(|outcome| **outcome != Outcome::Done);
    assert_eq!(failed, None);
}

/// The sets that our table has.
fn sets() -> impl Iterator<Item = SetId> {
    SetId::of(IpvsRules::Nftables)
}

/// Makes the sets and the rules, from whatever is there.
fn make(table: &mut OwnTable, context: &Context) {
    let family = context.family;
    let sets = sets().map(|id| Step::CreateSet(SetSpec::new(id, family, u32::MAX)));
    apply(table, &sets.collect::<Vec<_>>());
    let wanted = fixed_rules(context).unwrap();
    let edits = edits(&wanted, &Ruleset::new());
    table.edit(family, &edits).unwrap();
}

#[test]
fn our_messages_make_the_table_that_nft_makes_of_the_words() {
    in_namespace(|| {
        let mut table = OwnTable::open().unwrap();
        for context in contexts() {
            make(&mut table, &context);
            let ours = list();
            let wanted = fixed_rules(&context).unwrap();
            assert_eq!(table.observe_rules(context.family).unwrap(), wanted.chains);
            // Once more: the rules are replaced.
            make(&mut table, &context);
            assert_eq!(list(), ours);
            nft(&["flush", "ruleset"], "");
            nft(&["-f", "-"], &Shown(&context).to_string());
            assert_eq!(ours, list(), "{context:?}");
            nft(&["flush", "ruleset"], "");
            assert_eq!(table.observe_rules(context.family).unwrap(), Ruleset::new());
        }
    });
}

/// An entry of a type of set.
fn entry(family: IpFamily, set_type: SetType) -> SetEntry {
    let (service, source, network) = match family {
        IpFamily::V4 => ("10.96.0.1", "192.0.2.7", "192.0.2.0/24"),
        IpFamily::V6 => ("fd00:96::1", "fd01::7", "::/0"),
    };
    let service = service.parse().unwrap();
    let source = source.parse().unwrap();
    let protocol = Protocol::Tcp;
    match set_type {
        SetType::HashIp => SetEntry::Ip(service),
        SetType::HashIpPort => SetEntry::IpPort(service, protocol, 80),
        SetType::HashIpPortMark => SetEntry::IpPortMark(service, protocol, 80, 0x1001),
        SetType::HashIpPortIp => SetEntry::IpPortIp(service, protocol, 80, source),
        SetType::HashIpPortNet => {
            SetEntry::IpPortNet(service, protocol, 80, network.parse().unwrap())
        }
        SetType::BitmapPort => SetEntry::Port(30_080),
    }
}

/// The same in the words of `nft`.
fn words(family: IpFamily, set_type: SetType) -> &'static str {
    match (family, set_type) {
        (IpFamily::V4, SetType::HashIp) => "10.96.0.1",
        (IpFamily::V4, SetType::HashIpPort) => "10.96.0.1 . tcp . 80",
        (IpFamily::V4, SetType::HashIpPortMark) => "10.96.0.1 . tcp . 80 : 0x1001",
        (IpFamily::V4, SetType::HashIpPortIp) => "10.96.0.1 . tcp . 80 . 192.0.2.7",
        (IpFamily::V4, SetType::HashIpPortNet) => "10.96.0.1 . tcp . 80 . 192.0.2.0/24",
        (IpFamily::V6, SetType::HashIp) => "fd00:96::1",
        (IpFamily::V6, SetType::HashIpPort) => "fd00:96::1 . tcp . 80",
        (IpFamily::V6, SetType::HashIpPortMark) => "fd00:96::1 . tcp . 80 : 0x1001",
        (IpFamily::V6, SetType::HashIpPortIp) => "fd00:96::1 . tcp . 80 . fd01::7",
        (IpFamily::V6, SetType::HashIpPortNet) => "fd00:96::1 . tcp . 80 . ::/0",
        (_, SetType::BitmapPort) => "30080",
    }
}

fn in_table(family: IpFamily, id: SetId) -> String {
    let ip = match family {
        IpFamily::V4 => "ip",
        IpFamily::V6 => "ip6",
    };
    format!("{ip} kube-proxy-rs {}", id.name(family))
}

#[test]
fn our_elements_are_those_of_nft() {
    in_namespace(|| {
        let mut table = OwnTable::open().unwrap();
        for family in IpFamily::ALL {
            let context = Context {
                ipvs_rules: IpvsRules::Nftables,
                ..context(family)
            };
            make(&mut table, &context);
            let mut steps = Vec::new();
            let mut text = String::new();
            for id in sets() {
                let (set, entry) = (id.name(family), entry(family, id.set_type()));
                let words = words(family, id.set_type());
                let table = in_table(family, id);
                text.extend(["add element ", &table, " { ", words, " }\n"]);
                steps.push(Step::AddEntry { set, entry });
            }
            apply(&mut table, &steps);
            for id in sets() {
                let sets = table.observe_sets(family).unwrap();
                let found = &sets[&id.name(family)];
                assert_eq!(found.set_type, id.set_type());
                assert_eq!(found.entries, [entry(family, id.set_type())].into());
            }
            let ours = list();
            table.delete(family).unwrap();
            make(&mut table, &context);
            nft(&["-f", "-"], &text);
            assert_eq!(ours, list());
            table.delete(family).unwrap();
        }
    });
}

#[test]
fn entries_that_exclude_each_other_are_replaced() {
    in_namespace(|| {
        let family = IpFamily::V4;
        let mut table = OwnTable::open().unwrap();
        let id = SetId::LoadBalancerSourceCidr;
        let set = id.name(family);
        apply(
            &mut table,
            &[Step::CreateSet(SetSpec::new(id, family, u32::MAX))],
        );
        let of = |network: &str| {
            let address = "192.0.2.1".parse().unwrap();
            SetEntry::IpPortNet(address, Protocol::Tcp, 80, network.parse().unwrap())
        };
        let add = |network| Step::AddEntry {
            set: set.clone(),
            entry: of(network),
        };
        apply(&mut table, &[add("10.1.0.0/16"), add("10.2.0.0/16")]);
        let outcomes = table.apply_sets(&[&add("10.1.2.0/24"), &add("10.3.0.0/16")]);
        assert!(matches!(outcomes[0], Outcome::Failed(_)), "{outcomes:?}");
        assert_eq!(outcomes[1], Outcome::Done);
        let replace = |old: &[&str], new| Step::ReplaceEntries {
            set: set.clone(),
            old: old.iter().map(|network| of(network)).collect(),
            new: of(new),
        };
        let all = ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"];
        apply(&mut table, &[replace(&all, "10.0.0.0/8")]);
        let entries = |table: &mut OwnTable| {
            let sets = table.observe_sets(family).unwrap();
            sets[&set].entries.clone()
        };
        assert_eq!(entries(&mut table), [of("10.0.0.0/8")].into());
        apply(
            &mut table,
            &[replace(&["10.0.0.0/8"], "10.2.0.0/16"), add("10.1.0.0/16")],
        );
        let wanted = [of("10.1.0.0/16"), of("10.2.0.0/16")].into();
        assert_eq!(entries(&mut table), wanted);
        let missing = Step::DeleteEntry {
            set: set.clone(),
            entry: of("172.16.0.0/12"),
        };
        apply(&mut table, &[missing, add("10.3.0.0/16")]);
        assert_eq!(entries(&mut table).len(), 3);
    });
}

#[test]
fn a_set_of_100_000_entries_changes_by_one_element() {
    in_namespace(|| {
        let family = IpFamily::V4;
        let mut table = OwnTable::open().unwrap().watched();
        let id = SetId::ClusterIp;
        let set = id.name(family);
        apply(
            &mut table,
            &[Step::CreateSet(SetSpec::new(id, family, u32::MAX))],
        );
        let entry = |n: u32| {
            let address = std::net::Ipv4Addr::from_bits(0x0a60_0000 + n);
            SetEntry::IpPort(address.into(), Protocol::Tcp, 80)
        };
        let add = |n| Step::AddEntry {
            set: set.clone(),
            entry: entry(n),
        };
        let delete = |n| Step::DeleteEntry {
            set: set.clone(),
            entry: entry(n),
        };
        // What one more and one less cost: messages, bytes, round trips.
        let cost = |table: &mut OwnTable| {
            let before = table.stats();
            apply(table, &[add(200_000)]);
            apply(table, &[delete(200_000)]);
            let after = table.stats();
            (
                after.messages_sent - before.messages_sent,
                after.bytes_sent - before.bytes_sent,
                after.round_trips - before.round_trips,
            )
        };
        let of_empty = cost(&mut table);
        assert_eq!((of_empty.0, of_empty.2), (6, 2));
        apply(&mut table, &(0..100_000).map(add).collect::<Vec<_>>());
        // So many are more than a socket's queue holds: once, the generation is asked for.
        assert!(!table.has_changed(family), "our own");
        assert_eq!(cost(&mut table), of_empty);
        let found = table.observe_sets(family).unwrap();
        assert_eq!(found[&set].entries, (0..100_000).map(entry).collect());
        apply(&mut table, &(0..100_000).map(delete).collect::<Vec<_>>());
        let found = table.observe_sets(family).unwrap();
        assert_eq!(found[&set].entries, [].into());
        assert!(!table.has_changed(family), "our own");
    });
}

#[test]
fn changes_of_others_are_heard_of_and_our_own_are_not() {
    in_namespace(|| {
        let family = IpFamily::V4;
        let context = Context {
            ipvs_rules: IpvsRules::Nftables,
            ..context(family)
        };
        let mut table = OwnTable::open().unwrap().watched();
        make(&mut table, &context);
        let set = SetId::ClusterIp.name(family);
        let own = |port| Step::AddEntry {
            set: set.clone(),
            entry: SetEntry::IpPort("10.96.0.1".parse().unwrap(), Protocol::Tcp, port),
        };
        apply(&mut table, &[own(1)]);
        assert!(!table.has_changed(family), "our own");
        nft(&["add", "table", "ip", "other"], "");
        apply(&mut table, &[own(2)]);
        nft(&["add", "chain", "ip", "other", "web"], "");
        assert!(!table.has_changed(family), "another table");
        // Far more than a socket's queue holds.
        for batch in 0..8 {
            let steps: Vec<Step> = (1..=2_000).map(|port| own(batch * 2_000 + port)).collect();
            apply(&mut table, &steps);
        }
        assert!(!table.has_changed(family), "lost notifications of our own");
        assert!(!table.has_changed(IpFamily::V6));
        let element = in_table(family, SetId::ClusterIp);
        let foreign = [
            "delete element ip kube-proxy-rs equal-bytes { 0x7 . 0x7 }".to_owned(),
            // It is full, so that nothing is added to it alone.
            "delete element ip kube-proxy-rs equal-bytes { 0x7 . 0x7 }\n\
             add element ip kube-proxy-rs equal-bytes { 0x7 . 0x8 }"
                .to_owned(),
            format!("delete element {element} {{ 10.96.0.1 . tcp . 1 }}"),
            "flush chain ip kube-proxy-rs services".to_owned(),
            "add rule ip kube-proxy-rs postrouting accept".to_owned(),
            "delete table ip kube-proxy-rs".to_owned(),
        ];
        for change in foreign {
            nft(&["-f", "-"], &change);
            assert!(table.has_changed(family), "{change}");
            assert!(!table.has_changed(IpFamily::V6), "{change}");
            let rules = table.observe_rules(family).unwrap();
            assert!(!table.has_changed(family), "it was read");
            let wanted = fixed_rules(&context).unwrap();
            let repair = edits(&wanted, &rules);
            if !change.contains("KUBE-CLUSTER-IP") {
                assert_ne!(repair, [], "{change}");
                make(&mut table, &context);
            }
            let rules = table.observe_rules(family).unwrap();
            assert_eq!(edits(&wanted, &rules), []);
            assert!(!table.has_changed(family), "our repair");
        }
    });
}

#[test]
fn a_chain_at_the_place_of_an_earlier_version_moves() {
    in_namespace(|| {
        let mut table = OwnTable::open().unwrap();
        for context in contexts() {
            let (family, wanted) = (context.family, fixed_rules(&context).unwrap());
            make(&mut table, &context);
            let ours = list();
            let chain = match family {
                IpFamily::V4 => "chain ip kube-proxy-rs prerouting",
                IpFamily::V6 => "chain ip6 kube-proxy-rs prerouting",
            };
            let place = "{ type nat hook prerouting priority -100; }";
            let earlier = format!("delete {chain}\nadd {chain} {place}\n");
            nft(&["-f", "-"], &earlier);
            let edits = edits(&wanted, &table.observe_rules(family).unwrap());
            let moved: Vec<&str> = edits.iter().map(|it| it.chain().as_str()).collect();
            assert_eq!(moved, ["prerouting"]);
            table.edit(family, &edits).unwrap();
            assert_eq!(list(), ours);
            nft(&["flush", "ruleset"], "");
        }
    });
}

/// Listens and tells clients a name.
fn serve(at: SocketAddr, name: &'static str) {
    let listener = TcpListener::bind(at).unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            client.unwrap().write_all(name.as_bytes()).unwrap();
        }
    });
}

/// The name that a server told.
fn ask(server: SocketAddr) -> String {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(30)).unwrap();
    let mut name = String::new();
    stream.read_to_string(&mut name).unwrap();
    name
}

/// IPVS need not be here: what the node itself asks for is translated, or not, before it.
#[test]
fn services_keep_ports_that_others_publish_on_all_local_addresses() {
    in_namespace(|| {
        fed("ip", &["link", "set", "lo", "up"], "");
        let mut table = OwnTable::open().unwrap();
        for family in IpFamily::ALL {
            let (ip, at_once, addresses) = match family {
                IpFamily::V4 => ("ip", None, ["10.96.0.1", "192.0.2.7", "10.244.0.5"]),
                IpFamily::V6 => (
                    "ip6",
                    Some("nodad"),
                    ["fd00:96::1", "fd01::7", "fd00:10:244::5"],
                ),
            };
            for address in addresses {
                let add = ["address", "add", address, "dev", "lo"].into_iter();
                fed("ip", &add.chain(at_once).collect::<Vec<_>>(), "");
            }
            let [service, node, pod] = addresses.map(|it| it.parse::<IpAddr>().unwrap());
            let at = |address| SocketAddr::new(address, 80);
            let target = SocketAddr::new(pod, 8080);
            serve(at(service), "service");
            serve(target, "published");
            // What the CNI plugin portmap v1.10 does for clients on the node, in its own table.
            let published = format!(
                "table {ip} cni_hostport {{
                    chain output {{
                        type nat hook output priority -100;
                        fib daddr type local tcp dport 80 dnat to {target}
                    }}
                }}"
            );
            let unpublish = format!("delete table {ip} cni_hostport");
            let context = Context {
                ipvs_rules: IpvsRules::Nftables,
                ..context(family)
            };
            for id in [
                SetId::ClusterIp,
                SetId::ExternalIp,
                SetId::ExternalIpLocal,
                SetId::LoadBalancer,
            ] {
                nft(&["-f", "-"], &published);
                assert_eq!(ask(at(service)), "published");
                make(&mut table, &context);
                let entry = entry(family, id.set_type());
                let set = id.name(family);
                apply(&mut table, &[Step::AddEntry { set, entry }]);
                assert_eq!(ask(at(service)), "service", "{id:?}: ours is newer");
                nft(&[&unpublish], "");
                nft(&["-f", "-"], &published);
                assert_eq!(ask(at(service)), "service", "{id:?}: ours is older");
                assert_eq!(ask(at(node)), "published");
                nft(&[&unpublish], "");
                table.delete(family).unwrap();
            }
        }
    });
}

#[test]
fn this_kernel_can_hold_the_table_and_the_probe_leaves_nothing() {
    in_namespace(|| {
        for family in IpFamily::ALL {
            probe(family).unwrap();
        }
        assert_eq!(list(), "");
    });
}
