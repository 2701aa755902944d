// SPDX-License-Identifier: Apache-2.0
//! Sets, read back with `ipset`.

use std::net::{IpAddr, Ipv4Addr};

use ipset_netlink::IpFamily;
use ipset_netlink::{
    Client, Entry, Error, HashType, SetEntry, SetErrorKind, SetName, SetShape, SetSpec, SkbMark,
};
use kube_proxy_rs::clock::Clock;

use kpr_testkit::isolated::{Inner, Need, Test, run};

use super::{run_without_capability, sorted};

pub(crate) const TESTS: &[Test] = &[
    ("every_type_of_set_is_what_ipset_lists", NEEDS, every_type),
    (
        "entries_are_what_ipset_lists",
        NEEDS,
        entries_are_what_ipset_lists,
    ),
    (
        "entries_of_ipset_are_read_canonically",
        NEEDS,
        entries_of_ipset,
    ),
    ("adding_and_deleting_twice_is_success", NEEDS, twice),
    (
        "a_refused_entry_in_a_batch_is_named_and_alone",
        NEEDS,
        refused_entry_in_a_batch,
    ),
    (
        "a_hundred_thousand_entries",
        NEEDS,
        a_hundred_thousand_entries,
    ),
    (
        "a_set_outgrows_its_limit_under_a_rule",
        WITH_RULES,
        a_set_outgrows_its_limit,
    ),
    ("marks_are_set_and_replaced", NEEDS, marks),
    (
        "sets_that_we_do_not_make_are_listed_without_a_spec",
        NEEDS,
        foreign_sets,
    ),
    ("set_refusals_are_told_apart", WITH_RULES, refusals),
    ("no_sets_are_an_empty_list", NEEDS, no_sets),
    ("sets_without_the_capability", NEEDS, without_the_capability),
];

pub(crate) const INNER: &[Inner] = &[("opening_without_the_capability", opening)];

const NEEDS: &[Need] = &[Need::Namespaces, Need::Ipset];
const WITH_RULES: &[Need] = &[Need::Namespaces, Need::Ipset, Need::Legacy];

fn name(text: &str) -> SetName {
    SetName::new(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn hash(text: &str, set_type: HashType, family: IpFamily) -> SetSpec {
    SetSpec::hash(name(text), set_type, family)
}

fn ip_port(ip: IpAddr, protocol: u8, port: u16) -> SetEntry {
    Entry::IpPort { ip, protocol, port }.into()
}

/// Members as `ipset list` prints them, sorted.
fn members(set: &str) -> Vec<String> {
    let text = run("ipset", &["list", set]);
    let (_, members) = text.split_once("Members:\n").unwrap();
    sorted(members.lines().map(str::to_owned))
}

fn texts(entries: impl IntoIterator<Item = SetEntry>) -> Vec<String> {
    sorted(entries.into_iter().map(|entry| entry.to_string()))
}

fn added(client: &mut Client, set: &str, entries: &[SetEntry]) {
    assert_eq!(client.add(&name(set), entries).unwrap(), []);
}

fn read(client: &mut Client, set: &str) -> Vec<SetEntry> {
    client
        .entries(&name(set))
        .unwrap()
        .unwrap()
        .1
        .into_iter()
        .collect()
}

fn every_type() {
    let mut client = Client::open().unwrap();
    let mut specs = vec![
        SetSpec::bitmap_port(name("PORTS")),
        SetSpec {
            name: name("RANGE"),
            shape: SetShape::BitmapPort {
                first: 30_000,
                last: 32_767,
            },
        },
    ];
    for (family, prefix) in [(IpFamily::V4, "KUBE-"), (IpFamily::V6, "KUBE-6-")] {
        for (text, set_type) in [
            ("IPVS-IPS", HashType::Ip),
            ("CLUSTER-IP", HashType::IpPort),
            ("LOOP-BACK", HashType::IpPortIp),
            ("LOAD-BALANCER-SOURCE-CID", HashType::IpPortNet),
        ] {
            specs.push(hash(&format!("{prefix}{text}"), set_type, family).with_room_for(1 << 20));
        }
    }
    let mut marked = hash("MARKED", HashType::IpPort, IpFamily::V4);
    if let SetShape::Hash { skbinfo, .. } = &mut marked.shape {
        *skbinfo = true;
    }
    specs.push(marked);
    let mut timed = hash("TIMED", HashType::Ip, IpFamily::V6);
    if let SetShape::Hash { timeout, .. } = &mut timed.shape {
        *timeout = Some(10_800);
    }
    specs.push(timed);
    for spec in &specs {
        client.create(spec).unwrap();
        // The second time it already exists.
        client.create(spec).unwrap();
        let saved = run("ipset", &["save", spec.name.as_str()]);
        let wanted = spec.to_string().replace(" skbinfo", "");
        assert!(
            saved.starts_with(&format!("create {wanted}")),
            "{saved} is not {wanted}"
        );
        assert_eq!(
            saved.contains("skbinfo"),
            spec.to_string().contains("skbinfo"),
            "{saved}"
        );
        let info = client.set(&spec.name).unwrap().unwrap();
        assert_eq!(info.spec.as_ref(), Some(spec));
        assert_eq!((info.references, info.elements), (0, Some(0)));
    }
    let listed = client
        .sets()
        .unwrap()
        .into_iter()
        .filter_map(|info| info.spec);
    assert_eq!(sorted(listed), sorted(specs.iter().cloned()));
    let names = client.names().unwrap();
    assert_eq!(names.len(), specs.len());
    for spec in &specs {
        client.destroy(&spec.name).unwrap();
    }
    assert_eq!(run("ipset", &["list", "-n"]), "");
}

fn entries_are_what_ipset_lists() {
    let mut client = Client::open().unwrap();
    let net =
        |entry_ip: &str, net: &str| Entry::ip_port_net(ip(entry_ip), 6, 443, net.parse().unwrap());
    let rows: Vec<(SetSpec, Vec<Entry>)> = vec![
        (
            SetSpec::bitmap_port(name("PORTS")),
            vec![Entry::Port(0), Entry::Port(30_080), Entry::Port(65_535)],
        ),
        (
            hash("IPS", HashType::Ip, IpFamily::V4),
            vec![Entry::Ip(ip("10.0.0.1")), Entry::Ip(ip("255.255.255.254"))],
        ),
        (
            hash("IPS6", HashType::Ip, IpFamily::V6),
            vec![Entry::Ip(ip("fd00::1")), Entry::Ip(ip("::ffff:10.0.0.1"))],
        ),
        (
            hash("IP-PORT", HashType::IpPort, IpFamily::V4),
            [6, 17, 132]
                .map(|protocol| Entry::IpPort {
                    ip: ip("10.96.0.10"),
                    protocol,
                    port: 53,
                })
                .to_vec(),
        ),
        (
            hash("IP-PORT6", HashType::IpPort, IpFamily::V6),
            [6, 17, 132]
                .map(|protocol| Entry::IpPort {
                    ip: ip("fd00:96::a"),
                    protocol,
                    port: 65_535,
                })
                .to_vec(),
        ),
        (
            hash("LOOP", HashType::IpPortIp, IpFamily::V4),
            vec![Entry::IpPortIp {
                ip: ip("10.1.0.1"),
                protocol: 6,
                port: 8080,
                ip2: ip("10.1.0.1"),
            }],
        ),
        (
            hash("LOOP6", HashType::IpPortIp, IpFamily::V6),
            vec![Entry::IpPortIp {
                ip: ip("fd00::1"),
                protocol: 132,
                port: 8080,
                ip2: ip("fd00::2"),
            }],
        ),
        (
            hash("NET", HashType::IpPortNet, IpFamily::V4),
            ["0.0.0.0/0", "192.0.2.77/24", "192.0.2.7/32"]
                .iter()
                .flat_map(|range| net("203.0.113.1", range))
                .collect(),
        ),
        (
            hash("NET6", HashType::IpPortNet, IpFamily::V6),
            ["::/0", "2001:db8::77/64", "2001:db8::7/128"]
                .iter()
                .flat_map(|range| net("2001:db8:1::1", range))
                .collect(),
        ),
    ];
    for (spec, entries) in rows {
        let set = spec.name.as_str();
        client.create(&spec).unwrap();
        let wanted: Vec<SetEntry> = entries.iter().copied().map(SetEntry::from).collect();
        added(&mut client, set, &wanted);
        assert_eq!(members(set), texts(wanted.iter().copied()), "{set}");
        assert_eq!(read(&mut client, set), sorted(wanted), "{set}");
        assert_eq!(client.delete(&spec.name, &entries).unwrap(), [], "{set}");
        assert_eq!(members(set), Vec::<String>::new(), "{set}");
    }
}

/// Entries added by other programs read the same as ours, so they are not deleted and added again.
fn entries_of_ipset() {
    let mut client = Client::open().unwrap();
    run("ipset", &["create", "NET", "hash:ip,port,net"]);
    for entry in [
        "203.0.113.1,tcp:80,192.0.2.7/32",
        "203.0.113.1,tcp:80,192.0.2.77/24",
    ] {
        run("ipset", &["add", "NET", entry]);
    }
    let wanted: Vec<SetEntry> = ["192.0.2.7/32", "192.0.2.0/24"]
        .iter()
        .flat_map(|net| Entry::ip_port_net(ip("203.0.113.1"), 6, 80, net.parse().unwrap()))
        .map(SetEntry::from)
        .collect();
    assert_eq!(read(&mut client, "NET"), sorted(wanted));
}

fn twice() {
    let mut client = Client::open().unwrap();
    client
        .create(&hash("A", HashType::IpPort, IpFamily::V4))
        .unwrap();
    let entry = Entry::IpPort {
        ip: ip("10.0.0.1"),
        protocol: 6,
        port: 80,
    };
    for _ in 0..2 {
        added(&mut client, "A", &[entry.into()]);
    }
    assert_eq!(members("A"), ["10.0.0.1,tcp:80"]);
    for _ in 0..2 {
        assert_eq!(client.delete(&name("A"), &[entry]).unwrap(), []);
    }
    assert_eq!(members("A"), Vec::<String>::new());
    for _ in 0..2 {
        client.destroy(&name("A")).unwrap();
    }
}

fn refused_entry_in_a_batch() {
    let mut client = Client::open().unwrap();
    client
        .create(&hash("NET", HashType::IpPortNet, IpFamily::V4))
        .unwrap();
    let entry = |index: u32, net: &str| {
        SetEntry::from(Entry::IpPortNet {
            ip: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + index)),
            protocol: 6,
            port: 80,
            net: net.parse().unwrap(),
        })
    };
    let mut entries: Vec<SetEntry> = (0..1_700)
        .map(|index| entry(index, "192.0.2.0/24"))
        .collect();
    // First and last of a message, two in a row, first and last of all.
    let wrong = [0, 499, 500, 900, 901, 1_699];
    for at in wrong {
        entries[at] = entry(u32::try_from(at).unwrap(), "0.0.0.0/0");
    }
    let failures = client.add(&name("NET"), &entries).unwrap();
    let named: Vec<SetEntry> = failures.iter().map(|failure| failure.entry).collect();
    assert_eq!(named, wrong.map(|at| entries[at]));
    assert!(
        failures
            .iter()
            .all(|failure| failure.refusal.kind == SetErrorKind::InvalidEntry)
    );
    assert_eq!(failures[0].refusal.to_string(), "invalid prefix length");
    let right = entries
        .iter()
        .filter(|entry| !named.contains(entry))
        .copied();
    assert_eq!(members("NET"), texts(right));
}

/// `count` different entries.
fn many(count: u32) -> Vec<SetEntry> {
    (0..count)
        .map(|index| {
            let [a, b, c, d] = (0x0a60_0000 + index / 4).to_be_bytes();
            ip_port(
                IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
                6,
                80 + u16::try_from(index % 4).unwrap(),
            )
        })
        .collect()
}

fn a_hundred_thousand_entries() {
    let mut client = Client::open().unwrap();
    let clock = Clock::system();
    let entries = many(100_000);
    let spec = hash("BIG", HashType::IpPort, IpFamily::V4).with_room_for(entries.len());
    client.create(&spec).unwrap();
    let before = client.stats();
    let begin = clock.monotonic();
    added(&mut client, "BIG", &entries);
    let elapsed = clock.monotonic().saturating_sub(begin);
    let after = client.stats();
    let messages = after.messages_sent - before.messages_sent;
    println!(
        "100,000 entries added: {elapsed:?}, {messages} messages, {} round trips, {} bytes",
        after.round_trips - before.round_trips,
        after.bytes_sent - before.bytes_sent,
    );
    assert_eq!(messages, 200, "entries were not sent many at once");
    assert_eq!(members("BIG"), texts(entries.iter().copied()));

    let begin = clock.monotonic();
    assert_eq!(read(&mut client, "BIG").len(), entries.len());
    println!(
        "100,000 entries listed: {:?}",
        clock.monotonic().saturating_sub(begin)
    );
    let info = client.set(&name("BIG")).unwrap().unwrap();
    assert_eq!(info.elements, Some(100_000));
    assert!(
        info.spec.unwrap().can_serve(&spec),
        "the kernel made it grow"
    );

    let begin = clock.monotonic();
    let gone: Vec<Entry> = entries.iter().map(|entry| entry.entry).collect();
    assert_eq!(client.delete(&name("BIG"), &gone).unwrap(), []);
    println!(
        "100,000 entries deleted: {:?}",
        clock.monotonic().saturating_sub(begin)
    );
    assert_eq!(members("BIG"), Vec::<String>::new());
}

fn a_set_outgrows_its_limit() {
    let mut client = Client::open().unwrap();
    let small = hash("KUBE-CLUSTER-IP", HashType::IpPort, IpFamily::V4);
    client.create(&small).unwrap();
    let rule = [
        "-A",
        "INPUT",
        "-m",
        "set",
        "--match-set",
        "KUBE-CLUSTER-IP",
        "dst,dst",
    ];
    run("iptables-legacy", &rule);
    let entries = many(70_000);
    let failures = client.add(&small.name, &entries).unwrap();
    assert!(!failures.is_empty());
    assert!(
        failures
            .iter()
            .all(|failure| failure.refusal.kind == SetErrorKind::Full)
    );
    // Each entry is either in the set or reported.
    let inside = read(&mut client, "KUBE-CLUSTER-IP").len();
    assert_eq!(inside + failures.len(), entries.len());

    let big = small.clone().with_room_for(entries.len());
    let info = client.set(&small.name).unwrap().unwrap();
    assert!(!info.spec.unwrap().can_serve(&big));
    let mut aside = big.clone();
    aside.name = SetName::new("KUBE-CLUSTER-IP~").unwrap();
    client.create(&aside).unwrap();
    assert_eq!(client.add(&aside.name, &entries).unwrap(), []);
    client.swap(&small.name, &aside.name).unwrap();
    client.destroy(&aside.name).unwrap();
    let info = client.set(&small.name).unwrap().unwrap();
    assert!(info.spec.unwrap().can_serve(&big));
    // The rule still refers to the set.
    assert_eq!(info.references, 1);
    assert_eq!(members("KUBE-CLUSTER-IP"), texts(entries.iter().copied()));
    assert_eq!(
        run("ipset", &["list", "-n"]),
        "KUBE-CLUSTER-IP\n",
        "nothing else is left"
    );
    assert!(run("iptables-legacy-save", &[]).contains("--match-set KUBE-CLUSTER-IP dst,dst"));
}

fn marks() {
    let mut client = Client::open().unwrap();
    let mut spec = hash("M", HashType::IpPort, IpFamily::V4);
    if let SetShape::Hash { skbinfo, .. } = &mut spec.shape {
        *skbinfo = true;
    }
    client.create(&spec).unwrap();
    let entry = Entry::IpPort {
        ip: ip("10.0.0.1"),
        protocol: 6,
        port: 80,
    };
    let mark = |mark, mask| SetEntry {
        entry,
        mark: Some(SkbMark { mark, mask }),
        timeout: None,
    };
    for (wanted, text) in [
        (mark(0x10, 0xff), "10.0.0.1,tcp:80 skbmark 0x10/0xff"),
        (mark(0x4000, u32::MAX), "10.0.0.1,tcp:80 skbmark 0x4000"),
        (entry.into(), "10.0.0.1,tcp:80"),
    ] {
        added(&mut client, "M", &[wanted]);
        assert_eq!(members("M"), [text]);
        assert_eq!(read(&mut client, "M"), [wanted]);
    }
}

fn foreign_sets() {
    let mut client = Client::open().unwrap();
    run("ipset", &["create", "NETS", "hash:net"]);
    run("ipset", &["add", "NETS", "192.0.2.0/24"]);
    run(
        "ipset",
        &[
            "create",
            "LATER",
            "bitmap:port",
            "range",
            "0-9",
            "timeout",
            "60",
        ],
    );
    run("ipset", &["create", "MASKED", "hash:ip", "netmask", "24"]);
    run("ipset", &["create", "COUNTED", "hash:ip", "counters"]);
    run("ipset", &["create", "NOTED", "hash:ip", "comment"]);
    let sets = client.sets().unwrap();
    assert_eq!(sets.len(), 5);
    for info in &sets {
        assert_eq!(info.spec, None, "{info:?}");
    }
    let (info, entries) = client.entries(&name("NETS")).unwrap().unwrap();
    assert_eq!(
        (info.type_name.as_str(), info.elements),
        ("hash:net", Some(1))
    );
    assert!(entries.is_empty());
}

fn refusals() {
    let mut client = Client::open().unwrap();
    let kind = |result: Result<(), Error>| result.unwrap_err().refusal().unwrap().kind;
    let v4 = hash("A", HashType::IpPort, IpFamily::V4);
    client.create(&v4).unwrap();
    let v6 = hash("A", HashType::IpPort, IpFamily::V6);
    assert_eq!(kind(client.create(&v6)), SetErrorKind::AlreadyExists);
    assert_eq!(
        kind(client.create(&v4.clone().with_room_for(1 << 20))),
        SetErrorKind::AlreadyExists
    );

    client.create(&SetSpec::bitmap_port(name("P"))).unwrap();
    assert_eq!(
        kind(client.swap(&name("A"), &name("P"))),
        SetErrorKind::TypeMismatch
    );
    assert_eq!(kind(client.flush(&name("NONE"))), SetErrorKind::NotFound);
    assert!(
        client
            .swap(&name("NONE"), &name("A"))
            .unwrap_err()
            .is_not_found()
    );

    run(
        "iptables-legacy",
        &["-A", "INPUT", "-m", "set", "--match-set", "A", "dst,dst"],
    );
    let error = client.destroy(&name("A")).unwrap_err();
    assert_eq!(error.to_string(), "cannot destroy set A");
    assert_eq!(kind(Err(error)), SetErrorKind::Busy);

    let missing = client
        .add(&name("NONE"), &[Entry::Port(1).into()])
        .unwrap_err();
    assert!(missing.is_not_found(), "{missing:?}");
    let entry_kind = |client: &mut Client, set: &str, entry: SetEntry| {
        let failures = client.add(&name(set), &[entry]).unwrap();
        assert_eq!(failures[0].entry, entry);
        failures[0].refusal.kind
    };
    let range = SetSpec {
        name: name("R"),
        shape: SetShape::BitmapPort {
            first: 30_000,
            last: 32_767,
        },
    };
    client.create(&range).unwrap();
    assert_eq!(
        entry_kind(&mut client, "R", Entry::Port(80).into()),
        SetErrorKind::OutOfRange
    );
    let other_family = ip_port(ip("fd00::1"), 6, 80);
    assert_eq!(
        entry_kind(&mut client, "A", other_family),
        SetErrorKind::InvalidEntry
    );
    let entry = Entry::IpPort {
        ip: ip("10.0.0.1"),
        protocol: 6,
        port: 80,
    };
    let marked = SetEntry {
        entry,
        mark: Some(SkbMark { mark: 1, mask: 1 }),
        timeout: None,
    };
    assert_eq!(
        entry_kind(&mut client, "A", marked),
        SetErrorKind::InvalidEntry
    );
}

fn no_sets() {
    let mut client = Client::open().unwrap();
    assert_eq!(client.sets().unwrap(), []);
    assert!(client.names().unwrap().is_empty());
    assert_eq!(client.set(&name("NONE")).unwrap(), None);
    assert_eq!(client.entries(&name("NONE")).unwrap(), None);
    assert_eq!(
        (client.protocol().version, client.protocol().kernel),
        (7, 7)
    );
}

fn without_the_capability() {
    let output = run_without_capability("opening_without_the_capability");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("NET_ADMIN"), "{output:?}");
}

fn opening() {
    if let Err(error) = Client::open() {
        println!("{error}");
    }
}
