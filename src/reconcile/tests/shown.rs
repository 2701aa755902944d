// SPDX-License-Identifier: Apache-2.0
//! What the loop shows on request, and what it reports of Services for which the kernel rejects
//! something.

use serde_json::{Value, json};

use super::show::Target;
use super::*;
use crate::events::reason;
use kpr_core::model::{IpvsOptions, Protocol, Service};

impl<P: Planner> Fixture<P>
where
    Shared: Kernel<P>,
{
    fn ask(&mut self, service: Option<&str>, limit: usize) -> Value {
        let (answer, mut answered) = oneshot::channel();
        let service = service.map(service_name);
        let question = Question {
            service,
            matching: None,
            skip: 0,
            limit,
        };
        self.reconciler.take_in(Input::Show(question, answer));
        serde_json::to_value(answered.try_recv().unwrap()).unwrap()
    }

    fn web_shown(&mut self) -> Value {
        self.ask(Some("ns/web"), 1)["services"]["ns/web"]["IPv4"].clone()
    }

    fn events(&self) -> Vec<(&'static str, String)> {
        let events = std::mem::take(&mut *self.watcher.events.lock().unwrap());
        let events = events.into_iter();
        events.map(|event| (event.reason, event.note)).collect()
    }
}

#[test]
fn a_service_shows_what_it_has_and_should_have() {
    let mut fixture = Fixture::programmed();
    let web = fixture.web_shown();
    let server = json!({ "virtualServer": {
        "settings": "scheduler rr",
        "realServers": { "10.1.0.5:8080": "weight 1 masquerade", "10.1.0.6:8080": "weight 1 masquerade" },
    }});
    let objects = json!({ "TCP 10.96.0.1:80": server });
    assert_eq!(web["ports"]["TCP"]["desired"], objects, "{web:#}");
    assert_eq!(web["ports"]["TCP"]["believed"], objects, "{web:#}");
    assert_eq!(web["pending"], json!([]));
    assert_eq!(web["error"], Value::Null);
    assert_eq!(web["isChanged"], false);

    // A change that no round has taken in yet.
    fixture.scale(&["10.1.0.5"]);
    assert_eq!(fixture.web_shown()["isChanged"], true);
    assert_eq!(fixture.ask(None, 1)["changedCount"], 1);
}

#[test]
fn services_are_shown_page_by_page() {
    let mut fixture = Fixture::programmed();
    for name in ["ns/a", "ns/b", "other/web"] {
        let at = format!("10.96.1.{}", name.len());
        let at = if name == "ns/b" {
            "10.96.1.9".to_owned()
        } else {
            at
        };
        let service = service(name).cluster_ips(&[&at]).port(80);
        fixture.model(Event::ServiceApplied(service));
    }
    fixture.work();
    let mut shown = |skip, text: Option<&str>| {
        let (answer, mut answered) = oneshot::channel();
        let question = Question {
            service: None,
            matching: text.map(str::to_owned),
            skip,
            limit: 2,
        };
        fixture.reconciler.take_in(Input::Show(question, answer));
        let shown = answered.try_recv().unwrap();
        let names = shown.services.into_keys().collect::<Vec<_>>().join(" ");
        (names, shown.matching_count)
    };
    assert_eq!(shown(0, None), ("ns/a ns/b".to_owned(), None));
    assert_eq!(shown(2, None), ("ns/web other/web".to_owned(), None));
    assert_eq!(shown(4, None), (String::new(), None));
    assert_eq!(
        shown(0, Some("web")),
        ("ns/web other/web".to_owned(), Some(2))
    );
    assert_eq!(shown(1, Some("web")), ("other/web".to_owned(), Some(2)));
    assert_eq!(shown(0, Some("ns/")), ("ns/a ns/b".to_owned(), Some(3)));
}

#[test]
fn virtual_servers_have_their_owners() {
    let mut fixture = Fixture::programmed();
    let options = IpvsOptions {
        is_counted: true,
        ..IpvsOptions::default()
    };
    let counted = Service {
        ipvs: Some(Arc::new(options)),
        ..service("ns/counted")
            .cluster_ips(&["10.96.0.9"])
            .named_port("http", Protocol::Tcp, 81)
    };
    fixture.model(Event::ServiceApplied(counted));
    // The same place: the older Service, or the one of the first name, has it.
    let loser = service("ns/x").cluster_ips(&["10.96.0.9"]).port(81);
    fixture.model(Event::ServiceApplied(loser));
    fixture.work();
    let mut owners = |counted| {
        let (answer, mut answered) = oneshot::channel();
        fixture.reconciler.take_in(Input::Owners(counted, answer));
        let owners = answered.try_recv().unwrap().into_iter();
        let shown = owners.map(|owner| {
            let (server, port) = (owner.server.to_string(), owner.port.to_string());
            format!("{server} {port} {}", owner.port_text())
        });
        shown.collect::<Vec<_>>()
    };
    let web = "TCP 10.96.0.1:80 ns/web 80";
    let counted = "TCP 10.96.0.9:81 ns/counted:http http";
    assert_eq!(owners(false), [counted, web]);
    assert_eq!(owners(true), [counted]);
}

#[test]
fn a_service_at_too_many_places_is_not_explained_at_once() {
    let mut fixture = Fixture::programmed();
    let addresses: Vec<String> = (0..120).map(|n| format!("198.51.100.{n}")).collect();
    let external_ips = addresses.iter().map(|address| ip(address)).collect();
    let many = Service {
        external_ips,
        ..service("ns/many").cluster_ips(&["10.96.0.9"]).port(80)
    };
    fixture.model(Event::ServiceApplied(many));
    fixture.work();
    let mut explain = |target| {
        let (answer, mut answered) = oneshot::channel();
        let question = Explain {
            target,
            from: show::From::Pod,
        };
        fixture.reconciler.take_in(Input::Explain(question, answer));
        answered.try_recv().unwrap()
    };
    let error = explain(Target::Service(service_name("ns/many"), None)).unwrap_err();
    assert!(error.to_string().contains("more than 100"), "{error}");
    let explained = explain(Target::Service(service_name("ns/web"), None)).unwrap();
    let server = explained[0].virtual_server.as_deref();
    assert_eq!(server, Some("TCP 10.96.0.1:80"));
}

#[test]
fn what_the_kernel_rejects_is_shown_and_reported_until_it_works() {
    let mut fixture = Fixture::programmed();
    for _ in 0..2 {
        let trouble = ("add-real-server", Fault::Partial);
        fixture.lock().troubles.push_back(trouble);
    }
    fixture.scale(&["10.1.0.5", "10.1.0.6", "10.1.0.7"]);
    let step = "add real server TCP 10.96.0.1:80 -> 10.1.0.7:8080 weight 1 masquerade";
    let error = format!("{step}: injected");
    for _ in 0..2 {
        fixture.wait(Duration::from_mins(1));
        let web = fixture.web_shown();
        assert_eq!(web["error"]["message"], json!(error), "{web:#}");
        assert_eq!(web["pending"], json!([step]));
        assert_eq!(fixture.ask(None, 1)["troubleCount"], 1);
    }
    // Reported once.
    let note = format!("port ns/web: the kernel refuses to {error}");
    assert_eq!(fixture.events(), [(reason::REFUSED_BY_KERNEL, note)]);

    fixture.wait(Duration::from_mins(1));
    let web = fixture.web_shown();
    assert_eq!(web["error"], Value::Null, "{web:#}");
    assert_eq!(web["pending"], json!([]));
    assert_eq!(fixture.events(), []);
}

#[test]
fn refused_addresses_and_entries_are_shown_with_their_service() {
    for (kind, step) in [
        ("add-address", "add address 10.96.0.9 to kube-ipvs0"),
        ("add-entry", "add entry KUBE-CLUSTER-IP 10.96.0.9,tcp:80"),
    ] {
        let mut fixture = Fixture::programmed();
        let other = service("ns/other").cluster_ips(&["10.96.0.9"]).port(80);
        fixture.lock().troubles.push_back((kind, Fault::Partial));
        fixture.model(Event::ServiceApplied(other));
        fixture.work();
        let shown = fixture.ask(None, 1);
        let other = &shown["services"]["ns/other"]["IPv4"];
        let message = other["error"]["message"].as_str().unwrap();
        assert!(
            message.starts_with(step) || kind == "add-entry",
            "{shown:#}"
        );
        assert!(message.ends_with(": injected"), "{shown:#}");
        // Services with errors come first, whatever their names.
        assert_eq!(shown["services"].as_object().unwrap().len(), 1);
        assert_eq!(shown["serviceCount"], 2);
    }
}

#[test]
fn difference_from_belief_is_shown_without_an_event() {
    let mut fixture = Fixture::programmed();
    let trouble = ("add-real-server", Fault::Refused);
    fixture.lock().troubles.push_back(trouble);
    fixture.scale(&["10.1.0.5", "10.1.0.6", "10.1.0.7"]);
    fixture.work();
    assert_ne!(fixture.web_shown()["error"], Value::Null);
    assert_eq!(fixture.events(), []);
}

#[test]
fn lost_answer_is_shown_but_is_no_event() {
    let mut fixture = Fixture::programmed();
    let trouble = ("add-real-server", Fault::AnswerLost);
    fixture.lock().troubles.push_back(trouble);
    fixture.scale(&["10.1.0.5", "10.1.0.6", "10.1.0.7"]);
    fixture.work();
    assert_ne!(fixture.web_shown()["error"], Value::Null);
    assert_eq!(fixture.events(), []);
}

#[test]
fn iptables_mode_shows_chains_and_what_was_set_aside() {
    let mut fixture = Fixture::after(None);
    fixture.known_node();
    fixture.model(Event::ServicesReplaced(vec![service("ns/web").port(80)]));
    fixture.model(Event::SlicesReplaced(vec![
        slice(
            "ns/web",
            "a",
            vec![endpoint("10.1.0.5"), endpoint("10.1.0.6")],
        )
        .port(8080),
    ]));
    fixture.work();
    let web = fixture.web_shown();
    let port = &web["ports"]["TCP"];
    assert_eq!(port["frontends"], json!(["TCP 10.96.0.1:80"]), "{web:#}");
    let desired = port["desired"].as_object().unwrap();
    let chain = desired.keys().next().unwrap();
    assert!(chain.starts_with("nat KUBE-SVC-"), "{web:#}");
    assert_eq!(port["desired"], port["believed"], "{web:#}");
    assert_eq!(web["pending"], json!([]));

    // Another program holds the lock.
    fixture
        .lock()
        .troubles
        .push_back(("edit-rules", Fault::Locked));
    fixture.scale(&["10.1.0.5"]);
    fixture.wait(Duration::from_mins(1));
    assert_eq!(fixture.ask(None, 1)["families"]["IPv4"]["isPending"], true);
    assert_eq!(fixture.web_shown()["pending"], json!([chain]));
    fixture.wait(Duration::from_mins(1));
    assert_eq!(fixture.web_shown()["pending"], json!([]));

    // The kernel cannot do what one Service needs, until the Service requests something else.
    fixture.lock().refused_rules = Some("-m set");
    let sticky = service("ns/web").port(80).affinity(10);
    fixture.model(Event::ServiceApplied(sticky));
    fixture.wait(Duration::from_mins(1));
    let web = fixture.web_shown();
    assert_eq!(web["error"]["message"], "injected", "{web:#}");
    let events = fixture.events();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].0, reason::REFUSED_BY_KERNEL);
    fixture.wait(Duration::from_mins(1));
    assert_eq!(fixture.web_shown()["error"]["message"], "injected");
    fixture.model(Event::ServiceApplied(service("ns/web").port(80)));
    fixture.wait(Duration::from_mins(1));
    assert_eq!(fixture.web_shown()["error"], Value::Null);
}

#[test]
fn no_more_is_shown_than_was_asked_for() {
    let mut fixture = Fixture::programmed();
    fixture.many_and_slow(Duration::ZERO);
    let shown = fixture.ask(None, 10);
    assert_eq!(shown["services"].as_object().unwrap().len(), 10);
    assert_eq!(shown["serviceCount"], 101);
    // A virtual server is shown as desired and as believed, so the line limit is reached first.
    let endpoints: Vec<_> = (0..200).map(|n| endpoint(&format!("10.1.2.{n}"))).collect();
    let slices = (0..100)
        .map(|index| slice(&format!("ns/other-{index}"), "a", endpoints.clone()).port(8080));
    fixture.model(Event::SlicesReplaced(slices.collect()));
    fixture.wait(Duration::from_secs(1));
    let shown = fixture.ask(None, 1_000);
    let count = shown["services"].as_object().unwrap().len();
    assert!((20..40).contains(&count), "{count}");
}
