// SPDX-License-Identifier: Apache-2.0
//! The client against this machine's kernel, each test in a network namespace of its own, with the
//! `nft` program as the second opinion. Needs root and `nft`; without, the tests pass unless
//! `REQUIRE_NETNS` is set.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests may fail loudly, start programs and measure"
)]

mod ruleset;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::process::{Command as Program, Stdio};
use std::time::{Duration, Instant};

use nft_netlink::{
    Body, Chain, ChainType, Client, Command, DataType, Element, Error, Expression, Family,
    Generation, Heard, Hook, KernelErrorKind, KeyType, Monitor, Operation, Place, Rule, Set,
    SetFlags, Table, Value,
};
use nix::sched::{CloneFlags, unshare};

use ruleset::{
    RULESET, base, chain, destination, rule, ruleset, service, service_type, set, table, v4,
};

/// Runs a test in a network namespace of its thread's own, where that is possible.
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

/// What a program prints; it must succeed.
fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Program::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn list() -> String {
    run("nft", &["--stateless", "list", "ruleset"], "")
}

#[test]
fn a_ruleset_is_listed_like_that_of_nft() {
    in_namespace(|| {
        let mut client = Client::open().unwrap();
        client.apply(&ruleset()).unwrap();
        let ours = list();
        run("nft", &["flush", "ruleset"], "");
        run("nft", &["-f", "-"], RULESET);
        assert_eq!(ours, list());
    });
}

#[test]
fn what_was_applied_is_read_back() {
    in_namespace(|| {
        let mut client = Client::open().unwrap();
        let operations = ruleset();
        client.apply(&operations).unwrap();
        let table = table(Family::Ipv4);
        assert!(client.table(&table).unwrap().is_some());
        let rules = client.rules(&table).unwrap();
        let sets = client.sets(&table).unwrap();
        let chains = client.chains(&table).unwrap();
        let mut seen = 0;
        for operation in &operations {
            match operation {
                Operation::AddRule(rule, _) => {
                    assert!(
                        rules.iter().any(|status| rule.does_what(&status.rule)),
                        "{rule:#?} is not among {rules:#?}"
                    );
                    seen += 1;
                }
                Operation::AddSet(set) => {
                    let found = sets.iter().find(|status| status.set.key == set.key);
                    assert_eq!(&found.unwrap().set, set);
                    assert_eq!(client.set(&set.key).unwrap().unwrap().set, *set);
                }
                Operation::AddChain(chain) => {
                    assert!(
                        chains.iter().any(|status| status.chain == *chain),
                        "{chain:?}"
                    );
                }
                Operation::AddElements(key, elements) => {
                    let of = sets.iter().find(|status| status.set.key == *key);
                    let found = client.elements(&of.unwrap().set).unwrap();
                    let mut found: Vec<_> =
                        found.into_iter().map(|status| status.element).collect();
                    found.sort();
                    let mut wanted = elements.clone();
                    wanted.sort();
                    assert_eq!(found, wanted, "{key}");
                }
                _ => {}
            }
        }
        assert_eq!((rules.len(), chains.len()), (seen, 4));
        // By chain, in their order.
        let of_out = client.rules_of(&chain("out")).unwrap();
        assert_eq!(of_out.len(), 3);
        // The same again changes nothing but the rules, which are appended.
        client.apply(&operations).unwrap();
        assert_eq!(client.rules(&table).unwrap().len(), 2 * seen);
    });
}

#[test]
fn rules_are_placed_replaced_and_deleted() {
    in_namespace(|| {
        let mut client = Client::open().unwrap();
        let marked = |mark: u32, place| {
            let rule = Rule::new(chain("c"), Expression::mark_is(mark, u32::MAX));
            Operation::AddRule(rule.commented(mark.to_string()), place)
        };
        let comments = |client: &mut Client| -> Vec<(String, u64)> {
            client
                .rules_of(&chain("c"))
                .unwrap()
                .into_iter()
                .map(|status| (status.rule.comment.unwrap(), status.handle))
                .collect()
        };
        let names = |listed: &[(String, u64)]| -> Vec<String> {
            listed.iter().map(|(name, _)| name.clone()).collect()
        };
        client
            .apply(&[
                Operation::AddTable(Table::new(table(Family::Ipv4))),
                Operation::AddChain(Chain::regular(chain("c"))),
                marked(2, Place::Last),
                marked(4, Place::Last),
                marked(1, Place::First),
            ])
            .unwrap();
        let listed = comments(&mut client);
        assert_eq!(names(&listed), ["1", "2", "4"]);
        client
            .apply(&[
                marked(3, Place::After(listed[1].1)),
                marked(0, Place::Before(listed[0].1)),
                marked(5, Place::Instead(listed[2].1)),
            ])
            .unwrap();
        let listed = comments(&mut client);
        assert_eq!(names(&listed), ["0", "1", "2", "3", "5"]);
        client
            .apply(&[Operation::DeleteRule(chain("c"), listed[2].1)])
            .unwrap();
        assert_eq!(names(&comments(&mut client)), ["0", "1", "3", "5"]);
        client
            .apply(&[
                Operation::FlushChain(chain("c")),
                Operation::DeleteChain(chain("c")),
                Operation::DeleteTable(table(Family::Ipv4)),
            ])
            .unwrap();
        assert_eq!(list(), "");
    });
}

#[test]
fn a_refused_operation_undoes_its_transaction() {
    in_namespace(|| {
        let mut client = Client::open().unwrap();
        let ports = Set::keys(set("ports"), DataType::Port);
        let port = |port| Element::key(Value::port(port));
        let begin = [
            Operation::AddTable(Table::new(table(Family::Ipv4))),
            Operation::AddSet(ports.clone()),
            Operation::AddElements(ports.key.clone(), (0..50).map(port).collect()),
        ];
        client.apply(&begin).unwrap();
        let before = list();
        let error = client
            .apply(&[
                Operation::AddElements(ports.key.clone(), vec![port(100)]),
                // 60 is not there.
                Operation::DeleteElements(ports.key.clone(), [10, 20, 60, 30].map(port).into()),
                Operation::DeleteChain(chain("missing")),
            ])
            .unwrap_err();
        let told: Vec<_> = error
            .refusals()
            .map(|refusal| (refusal.operation, refusal.element, refusal.source.kind))
            .collect();
        assert_eq!(
            told,
            [
                (Some(1), Some(2), KernelErrorKind::NotFound),
                (Some(2), None, KernelErrorKind::NotFound),
            ],
            "{error:?}"
        );
        assert_eq!(list(), before);
        // The client is of use afterwards.
        client
            .apply(&[Operation::FlushSet(ports.key.clone())])
            .unwrap();
        assert_eq!(client.elements(&ports).unwrap(), []);
    });
}

#[test]
fn many_refusals_are_all_told() {
    in_namespace(|| {
        let mut client = Client::open().unwrap();
        client
            .apply(&[Operation::AddTable(Table::new(table(Family::Ipv4)))])
            .unwrap();
        let wrong: Vec<Operation> = (0..150)
            .map(|number| Operation::DeleteChain(chain(&format!("missing{number}"))))
            .collect();
        let error = client.apply(&wrong).unwrap_err();
        let told: Vec<_> = error.refusals().map(|refusal| refusal.operation).collect();
        let all: Vec<_> = (0..150).map(Some).collect();
        assert_eq!(told, all);
    });
}

#[test]
fn a_transaction_for_another_generation_is_not_done() {
    in_namespace(|| {
        let mut client = Client::open().unwrap();
        let seen: Generation = client.generation().unwrap();
        run("nft", &["add", "table", "ip", "other"], "");
        let add = [Operation::AddTable(Table::new(table(Family::Ipv4)))];
        let error = client.apply_at(&seen, &add).unwrap_err();
        assert!(matches!(error, Error::Changed(_)), "{error:?}");
        assert_eq!(client.table(&table(Family::Ipv4)).unwrap(), None);
        let seen = client.generation().unwrap();
        client.apply_at(&seen, &add).unwrap();
        assert_ne!(client.generation().unwrap().id, seen.id);
    });
}

#[test]
fn a_hundred_thousand_elements_are_one_transaction() {
    in_namespace(|| {
        let mut client = Client::open().unwrap();
        let wide =
            KeyType::concatenation(&[DataType::Ipv6Address, DataType::Protocol, DataType::Port]);
        let marks = Set::map(set("marks"), wide, DataType::Mark);
        let elements: Vec<Element> = (0..100_000_u32)
            .map(|host| {
                let address = Ipv6Addr::from_bits((0xfd << 120) | u128::from(host));
                Element::entry(service(address.into(), 6, 80), Value::mark(host))
            })
            .collect();
        let begin = [
            Operation::AddTable(Table::new(table(Family::Ipv4))),
            Operation::AddSet(marks.clone()),
        ];
        client.apply(&begin).unwrap();
        let before = client.socket_stats();
        let start = Instant::now();
        let add = [Operation::AddElements(marks.key.clone(), elements.clone())];
        client.apply(&add).unwrap();
        let added = start.elapsed();
        let stats = client.socket_stats();
        assert_eq!(stats.round_trips, before.round_trips + 1);
        let start = Instant::now();
        let mut listed: Vec<Element> = client
            .elements(&marks)
            .unwrap()
            .into_iter()
            .map(|status| status.element)
            .collect();
        println!(
            "100,000 elements: {} bytes in {} messages, added in {added:?}, listed in {:?}",
            stats.bytes_sent - before.bytes_sent,
            stats.messages_sent - before.messages_sent,
            start.elapsed()
        );
        listed.sort();
        assert_eq!(listed, elements);
        // Half of them, and one more that is not there, which refuses all.
        let mut gone = elements[..50_000].to_vec();
        let missing = Element::key(service(Ipv6Addr::LOCALHOST.into(), 6, 80));
        gone.push(missing);
        let delete = [Operation::DeleteElements(marks.key.clone(), gone.clone())];
        let error = client.apply(&delete).unwrap_err();
        let refusal = error.refusals().next().unwrap();
        assert_eq!(refusal.element, Some(50_000));
        gone.pop();
        let delete = [Operation::DeleteElements(marks.key.clone(), gone)];
        client.apply(&delete).unwrap();
        assert_eq!(client.elements(&marks).unwrap().len(), 50_000);
    });
}

#[test]
fn elements_expire() {
    in_namespace(|| {
        let mut client = Client::open().unwrap();
        let recent = Set {
            timeout: Some(Duration::from_secs(3600)),
            ..Set::keys(set("recent"), DataType::Ipv4Address).with(SetFlags::TIMEOUT)
        };
        let soon = Element {
            timeout: Some(Duration::from_secs(30)),
            comment: Some("a guest".to_owned()),
            ..Element::key(v4("10.0.0.1"))
        };
        client
            .apply(&[
                Operation::AddTable(Table::new(table(Family::Ipv4))),
                Operation::AddSet(recent.clone()),
                Operation::AddElements(
                    recent.key.clone(),
                    vec![soon.clone(), Element::key(v4("10.0.0.2"))],
                ),
            ])
            .unwrap();
        let listed = client.elements(&recent).unwrap();
        let left = |element: &Element| {
            let status = listed
                .iter()
                .find(|status| status.element.key == element.key);
            status.unwrap().expires_in.unwrap()
        };
        assert!(left(&soon) <= Duration::from_secs(30));
        assert!(left(&Element::key(v4("10.0.0.2"))) > Duration::from_secs(30));
        assert!(listed.iter().any(|status| status.element == soon));
    });
}

#[test]
fn notifications_tell_what_another_process_changed() {
    in_namespace(|| {
        let mut client = Client::open().unwrap();
        client.apply(&ruleset()).unwrap();
        let mut monitor = Monitor::open().unwrap();
        assert_eq!(monitor.receive(None, |_| {}).unwrap(), Heard::Nothing);
        let mut hear = || {
            let mut heard = Vec::new();
            let is_over = |heard: &[nft_netlink::Message]| {
                heard
                    .iter()
                    .any(|message| message.command == Command::NewGeneration)
            };
            while !is_over(&heard) {
                let patience = Some(Duration::from_secs(10));
                let got = monitor.receive(patience, |message| heard.push(message));
                assert_eq!(got.unwrap(), Heard::Messages);
            }
            heard
        };
        let deletion = "delete element ip t services { 10.0.0.1 . tcp . 80 }";
        run("nft", &[deletion], "");
        let heard = hear();
        assert_eq!(heard[0].command, Command::DeleteElements);
        assert_eq!(heard[0].table(), Some(table(Family::Ipv4)));
        let maker = |heard: &[nft_netlink::Message]| match &heard.last().unwrap().body {
            Body::Generation(attributes) => Generation::from_attributes(attributes).unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(maker(&heard).thread_name.as_deref(), Some("nft"));
        let own = Element::key(service(v4("10.0.0.1"), 6, 80));
        client
            .apply(&[Operation::AddElements(set("services"), vec![own])])
            .unwrap();
        let heard = hear();
        assert_eq!(heard[0].command, Command::NewElements);
        let thread = u32::try_from(nix::unistd::gettid().as_raw()).unwrap();
        assert_eq!(maker(&heard).thread, Some(thread));
    });
}

#[test]
fn packets_meet_what_is_in_a_set() {
    in_namespace(|| {
        run("ip", &["link", "set", "lo", "up"], "");
        let listener = TcpListener::bind((IpAddr::from(Ipv4Addr::LOCALHOST), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = Client::open().unwrap();
        let blocked = Set::keys(set("blocked"), service_type());
        let mut steps = destination();
        steps.push(Expression::is_in(blocked.key.name.clone()));
        steps.push(Expression::rejects_port(Family::Ipv4));
        client
            .apply(&[
                Operation::AddTable(Table::new(table(Family::Ipv4))),
                Operation::AddSet(blocked.clone()),
                base("out", ChainType::Filter, Hook::Output, 0),
                rule("out", steps),
            ])
            .unwrap();
        TcpStream::connect(address).unwrap();
        let key = service(v4("127.0.0.1"), 6, address.port());
        let element = vec![Element::key(key)];
        let block = Operation::AddElements(blocked.key.clone(), element.clone());
        client.apply(&[block]).unwrap();
        let error = TcpStream::connect(address).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        let free = Operation::DeleteElements(blocked.key.clone(), element);
        client.apply(&[free]).unwrap();
        TcpStream::connect(address).unwrap();
    });
}

#[test]
fn the_listing_of_another_programs_rules_is_complete() {
    in_namespace(|| {
        // Expressions and objects that this crate does not know are kept, and nothing is refused.
        let foreign = "
            table inet foreign {
                counter hits { }
                map helpers { type inet_service : counter; elements = { 80 : \"hits\" } }
                set stats { type ipv4_addr; counter; elements = { 10.0.0.1 } }
                chain c {
                    tcp option maxseg size set 1200
                    log prefix \"seen \" group 3
                    numgen inc mod 2 vmap { 0 : drop, 1 : accept }
                    ip saddr { 10.0.0.1, 10.0.0.2 } counter name \"hits\"
                    quota over 10 mbytes drop
                    tcp flags & (syn | ack) == syn ct count over 10 reject
                }
            }";
        run("nft", &["-f", "-"], foreign);
        let mut client = Client::open().unwrap();
        let tables = client.tables().unwrap();
        let key = &tables[0].table.key;
        assert_eq!(key.to_string(), "inet foreign");
        assert_eq!(client.rules(key).unwrap().len(), 6);
        let sets = client.sets(key).unwrap();
        assert_eq!(sets.len(), 4, "{sets:#?}");
        let elements: usize = sets
            .iter()
            .map(|status| client.elements(&status.set).unwrap().len())
            .sum();
        assert_eq!(elements, 1 + 1 + 2 + 2);
    });
}
