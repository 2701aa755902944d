// SPDX-License-Identifier: Apache-2.0
//! Which endpoints serve which address of a Service.

use super::*;
use crate::model::ipvs_options::Scheduler;

#[test]
fn external_policy_local_never_uses_remote_endpoints() {
    let service = service("ns/web").port(80).node_port(30080).external_local();
    let port_objects = of(&service, vec![endpoint("10.0.2.1")], &context(IpFamily::V4));
    assert_eq!(
        servers(&port_objects),
        [
            pair("TCP 10.96.0.1:80", &["10.0.2.1:8080"]),
            pair("TCP 172.16.0.10:30080", &[]),
            pair("TCP 192.168.0.10:30080", &[]),
        ]
    );
    assert!(port_objects.no_local_external);
    assert!(!port_objects.no_local_internal);
}

#[test]
fn internal_policy_local_never_uses_remote_endpoints() {
    let service = service("ns/web").port(80).node_port(30080).internal_local();
    let port_objects = of(&service, vec![endpoint("10.0.2.1")], &context(IpFamily::V4));
    assert_eq!(
        servers(&port_objects),
        [
            pair("TCP 10.96.0.1:80", &[]),
            pair("TCP 172.16.0.10:30080", &["10.0.2.1:8080"]),
            pair("TCP 192.168.0.10:30080", &["10.0.2.1:8080"]),
        ]
    );
    assert!(port_objects.no_local_internal);
    assert!(!port_objects.no_local_external);
}

#[test]
fn a_service_without_endpoints_anywhere_does_not_count_as_lacking_local_ones() {
    let service = service("ns/web")
        .port(80)
        .node_port(30080)
        .internal_local()
        .external_local();
    let port_objects = of(&service, vec![], &context(IpFamily::V4));
    assert!(!port_objects.no_local_internal && !port_objects.no_local_external);
}

#[test]
fn terminating_endpoints_are_the_last_resort_on_this_node_too() {
    let service = service("ns/web").port(80).node_port(30080).external_local();
    let endpoints = vec![
        endpoint("10.0.1.1").local().terminating(),
        endpoint("10.0.2.1"),
    ];
    let port_objects = of(&service, endpoints, &context(IpFamily::V4));
    assert_eq!(
        servers(&port_objects),
        [
            pair("TCP 10.96.0.1:80", &["10.0.2.1:8080"]),
            pair("TCP 172.16.0.10:30080", &["10.0.1.1:8080"]),
            pair("TCP 192.168.0.10:30080", &["10.0.1.1:8080"]),
        ]
    );
    assert!(!port_objects.no_local_external);
}

#[test]
fn zone_hints_do_not_filter_local_endpoints() {
    let service = service("ns/web").port(80).node_port(30080).external_local();
    let endpoints = vec![
        endpoint("10.0.1.1").local().zone("there"),
        endpoint("10.0.2.1").zone("here"),
    ];
    let port_objects = of(&service, endpoints, &context(IpFamily::V4));
    assert_eq!(
        servers(&port_objects),
        [
            pair("TCP 10.96.0.1:80", &["10.0.2.1:8080"]),
            pair("TCP 172.16.0.10:30080", &["10.0.1.1:8080"]),
            pair("TCP 192.168.0.10:30080", &["10.0.1.1:8080"]),
        ]
    );
}

#[test]
fn the_policies_pick_the_real_servers_of_each_role() {
    // Rows: internal Local, external Local; columns: cluster IP, external IP, VIP, node port.
    for (internal, external) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut service = service("ns/web")
            .port(80)
            .node_port(30080)
            .external_ip("203.0.113.1")
            .vip("198.51.100.1");
        service.internal_policy_local = internal;
        service.external_policy_local = external;
        let port_objects = of(&service, local_and_remote(), &context(IpFamily::V4));
        let count = |at: &str| {
            wanted_at(&port_objects, vs(Protocol::Tcp, at))
                .real_servers
                .len()
        };
        let expected = |is_local: bool| if is_local { 1 } else { 2 };
        assert_eq!(count("10.96.0.1:80"), expected(internal));
        assert_eq!(count("203.0.113.1:80"), expected(external));
        assert_eq!(count("198.51.100.1:80"), expected(external));
        assert_eq!(count("192.168.0.10:30080"), expected(external));
        assert_eq!(count("172.16.0.10:30080"), expected(external));
    }
}

#[test]
fn pods_and_the_node_reach_all_endpoints_by_a_mark() {
    let service = service("ns/web")
        .port(80)
        .node_port(30080)
        .vip("198.51.100.1")
        .external_local();
    let slice = slice("ns/web", "a", local_and_remote()).port(8080);
    let port_objects = with_mark(&service, &slice, &context(IpFamily::V4), Some(0x1007));
    let all = ["10.0.1.1:8080", "10.0.2.1:8080"];
    assert_eq!(
        servers(&port_objects),
        [
            pair("TCP 10.96.0.1:80", &all),
            pair("TCP 172.16.0.10:30080", &all[..1]),
            pair("TCP 192.168.0.10:30080", &all[..1]),
            pair("TCP 198.51.100.1:80", &all[..1]),
            pair("FWM 4103 IPv4", &all),
        ]
    );
    let marked: Vec<_> = entries(&port_objects)
        .into_iter()
        .filter(|entry| entry.contains("skbmark"))
        .collect();
    assert_eq!(
        marked,
        [
            "KUBE-LOCAL-POLICY-MARK 172.16.0.10,tcp:30080 skbmark 0x1007/0x1fff",
            "KUBE-LOCAL-POLICY-MARK 192.168.0.10,tcp:30080 skbmark 0x1007/0x1fff",
            "KUBE-LOCAL-POLICY-MARK 198.51.100.1,tcp:80 skbmark 0x1007/0x1fff",
        ]
    );
}

#[test]
fn only_external_addresses_with_policy_local_need_a_mark() {
    let needs = |service: &Service| needs_mark(&ServicePort::of(service, IpFamily::V4)[0]);
    let web = || service("ns/web").port(80);
    assert!(!needs(&web()));
    assert!(!needs(&web().external_local()));
    assert!(!needs(&web().node_port(30080)));
    assert!(!needs(&web().node_port(30080).internal_local()));
    assert!(needs(&web().node_port(30080).external_local()));
    assert!(needs(&web().external_ip("203.0.113.1").external_local()));
}

#[test]
fn a_mark_keeps_clients_by_their_hash() {
    let mut service = service("ns/web").port(80).node_port(30080).external_local();
    service.client_ip_affinity = Some(Duration::from_mins(1));
    let slice = slice("ns/web", "a", local_and_remote()).port(8080);
    let port_objects = with_mark(&service, &slice, &context(IpFamily::V4), Some(0x1007));
    let key = VirtualServerKey::Mark {
        mark: 0x1007,
        family: IpFamily::V4,
    };
    let server = &wanted_at(&port_objects, key).server;
    assert_eq!(
        (&*server.scheduler, server.flags, server.timeout),
        ("mh", flags::SCHED_FALLBACK, 0)
    );
    let server = &wanted_at(&port_objects, tcp("192.168.0.10:30080")).server;
    assert_eq!(
        (&*server.scheduler, server.flags, server.timeout),
        ("rr", flags::PERSISTENT, 60)
    );
}

#[test]
fn a_mark_keeps_clients_by_what_the_kernel_has() {
    let service = service("ns/web")
        .port(80)
        .node_port(30080)
        .external_local()
        .affinity(60);
    let slice = slice("ns/web", "a", local_and_remote()).port(8080);
    let of = |missing: &[Scheduler]| {
        let context = Context {
            missing_schedulers: missing.iter().copied().collect(),
            ..context(IpFamily::V4)
        };
        let port_objects = with_mark(&service, &slice, &context, Some(0x1007));
        let key = VirtualServerKey::Mark {
            mark: 0x1007,
            family: IpFamily::V4,
        };
        let server = &wanted_at(&port_objects, key).server;
        let found = port_objects.extras.iter().flat_map(|extras| &extras.unmet);
        (
            server.scheduler.to_string(),
            server.flags,
            found.cloned().collect::<Vec<_>>(),
        )
    };
    let (mh, sh) = (Scheduler::Mh, Scheduler::Sh);
    let missing = |used| vec![Unmet::ClientHashMissing { wanted: mh, used }];
    let fallback = flags::SCHED_FALLBACK;
    assert_eq!(of(&[sh]), ("mh".to_owned(), fallback, vec![]));
    assert_eq!(of(&[mh]), ("sh".to_owned(), fallback, missing(Some(sh))));
    assert_eq!(of(&[mh, sh]), ("rr".to_owned(), 0, missing(None)));
}

#[test]
fn a_local_policy_drops_where_only_others_have_endpoints() {
    let dropped = |service: Service, endpoints| -> Vec<String> {
        entries(&of(&service, endpoints, &context(IpFamily::V4)))
            .into_iter()
            .filter(|entry| entry.contains("NO-LOCAL"))
            .collect()
    };
    let web = || service("ns/web").port(80).vip("198.51.100.1");
    let afar = || vec![endpoint("10.0.2.1")];
    let near = || vec![endpoint("10.0.1.1").local(), endpoint("10.0.2.1")];
    let cluster_ip = "KUBE-NO-LOCAL-ENDPOINTS 10.96.0.1,tcp:80";
    let vip = "KUBE-NO-LOCAL-ENDPOINTS 198.51.100.1,tcp:80";
    assert_eq!(dropped(web().external_local(), afar()), [vip]);
    assert_eq!(dropped(web().internal_local(), afar()), [cluster_ip]);
    let both = web().internal_local().external_local();
    assert_eq!(dropped(both, afar()), [cluster_ip, vip]);
    assert!(dropped(web(), afar()).is_empty());
    assert!(dropped(web().external_local(), near()).is_empty());
    // There is no endpoint anywhere: rejected, not dropped.
    let both = web().internal_local().external_local();
    assert!(dropped(both, vec![]).is_empty());
}
