// SPDX-License-Identifier: Apache-2.0
//! The servers, asked over loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use prometheus::Registry;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::clock::{Clock, ManualClock};
use crate::config::types::KubeProxyConfiguration;
use crate::metrics::{self, HealthMetrics};
use kpr_core::model::ProxyMode;
use kpr_core::model::ServiceName;
use kpr_core::model::net::IpFamily;

/// How long a condition may take to come true before a test fails.
const LIMIT: Duration = Duration::from_mins(1);

/// An answer: status code, headers in lower case, body.
#[derive(Debug)]
struct Answer {
    code: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

async fn ask(address: SocketAddr, method: &str, path: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let code = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    Answer {
        code,
        headers,
        body: body.to_owned(),
    }
}

async fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, "GET", path).await
}

/// Serves on an ephemeral port until the test's runtime ends.
fn serve(routes: Router) -> SocketAddr {
    let server = Server::bind("test", "127.0.0.1:0".parse().unwrap(), routes, true).unwrap();
    let address = server.local_address().unwrap();
    tokio::spawn(server.run());
    address
}

fn proxy_health() -> (ProxyHealth, ManualClock) {
    let (clock, hand) = Clock::manual("2026-01-01T00:00:00Z".parse().unwrap());
    let health = ProxyHealth::new(clock, Duration::from_secs(30));
    health.started(IpFamily::V4);
    health.set_node_eligible(true);
    health.ready();
    health.round_started(IpFamily::V4);
    health.round_succeeded(IpFamily::V4);
    (health, hand)
}

fn health_server() -> (SocketAddr, ProxyHealth, ManualClock, Registry) {
    let (health, hand) = proxy_health();
    let registry = Registry::new();
    let metrics = HealthMetrics::register(&registry).unwrap();
    let address = serve(health_routes(health.clone(), metrics));
    (address, health, hand, registry)
}

fn admin_server() -> SocketAddr {
    let registry = metrics::registry("v1.37.2").unwrap();
    let configuration = KubeProxyConfiguration::with_defaults();
    let surface = AdminSurface {
        registry,
        scraped: None,
        mode: ProxyMode::IPVS,
        configuration: Arc::new(move || serde_json::to_value(&configuration).unwrap()),
        flags: [
            ("bind-address".to_owned(), "0.0.0.0".to_owned()),
            ("config".to_owned(), String::new()),
        ]
        .into(),
        clock: Clock::manual("2026-01-05T00:00:00Z".parse().unwrap()).0,
        kubernetes_version: "v1.37.2".to_owned(),
        state: Arc::new(|query| {
            Box::pin(async move {
                match query.as_slice() {
                    [] => Ok(json!({"desired": 3})),
                    query => Err(format!("{query:?}")),
                }
            })
        }),
        explain: Arc::new(|_| Box::pin(async { Ok(json!([])) })),
        servers: Arc::new(|| Box::pin(async { json!({"TCP 10.96.0.1:80": "shop/web"}) })),
        status: Arc::new(|| Box::pin(async { json!({"healthy": true}) })),
        page: Arc::new(|_| Box::pin(async { Ok("<p>".to_owned()) })),
    };
    serve(admin_routes(surface).unwrap())
}

#[tokio::test]
async fn a_healthy_proxy_answers_200_with_upstreams_body_and_headers() {
    let (address, ..) = health_server();
    let answer = get(address, "/healthz").await;
    assert_eq!(answer.code, 200);
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    assert_eq!(
        answer.body,
        r#"{"lastUpdated":"2026-01-01T00:00:00Z","currentTime":"2026-01-01T00:00:00Z","nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"2026-01-01T00:00:00Z","healthy":true}}}"#
    );
    let live = get(address, "/livez").await;
    assert_eq!(live.code, 200);
    assert!(!live.body.contains("nodeEligible"), "{}", live.body);
}

#[tokio::test]
async fn a_late_change_fails_both() {
    let (address, health, hand, _) = health_server();
    health.change_queued(IpFamily::V4);
    hand.advance(Duration::from_mins(1));
    for path in ["/healthz", "/livez"] {
        let answer = get(address, path).await;
        assert_eq!(answer.code, 503, "{path}");
        assert!(
            answer.body.contains(r#""healthy":false"#),
            "{}",
            answer.body
        );
    }
}

#[tokio::test]
async fn an_ineligible_node_fails_healthz_alone() {
    let (address, health, ..) = health_server();
    health.set_node_eligible(false);
    let answer = get(address, "/healthz").await;
    assert_eq!(answer.code, 503);
    assert!(
        answer
            .body
            .contains(r#""nodeEligible":false,"healthy":true"#),
        "{}",
        answer.body
    );
    assert_eq!(get(address, "/livez").await.code, 200);
}

#[tokio::test]
async fn health_answers_are_counted_by_code() {
    let (address, health, _, registry) = health_server();
    get(address, "/healthz").await;
    get(address, "/livez").await;
    health.set_node_eligible(false);
    get(address, "/healthz").await;
    get(address, "/healthz").await;
    let text = prometheus::TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap();
    for line in [
        r#"kubeproxy_proxy_healthz_total{code="200"} 1"#,
        r#"kubeproxy_proxy_healthz_total{code="503"} 2"#,
        r#"kubeproxy_proxy_livez_total{code="200"} 1"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn other_paths_are_not_found() {
    let (health, ..) = health_server();
    let admin = admin_server();
    for (address, path) in [
        (health, "/"),
        (health, "/metrics"),
        (health, "/healthz/"),
        (admin, "/livez"),
    ] {
        let answer = get(address, path).await;
        assert_eq!(
            (answer.code, answer.body.as_str()),
            (404, "404 page not found\n"),
            "{path}"
        );
        assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    }
}

#[tokio::test]
async fn any_method_is_answered() {
    let (address, ..) = health_server();
    assert_eq!(ask(address, "POST", "/healthz").await.code, 200);
    let head = ask(address, "HEAD", "/healthz").await;
    assert_eq!((head.code, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn metrics_are_served_as_prometheus_text() {
    let answer = get(admin_server(), "/metrics").await;
    assert_eq!(answer.code, 200);
    assert_eq!(
        answer.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
    );
    let start: u64 = answer.headers["process-start-time-unix"].parse().unwrap();
    let line = format!("process_start_time_seconds {start}");
    assert!(
        answer.body.lines().any(|l| l == line),
        "{line}\n{}",
        answer.body
    );
}

#[tokio::test]
async fn the_mode_is_told_without_a_newline() {
    let answer = get(admin_server(), "/proxyMode").await;
    assert_eq!((answer.code, answer.body.as_str()), (200, "ipvs"));
    assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
}

#[tokio::test]
async fn the_configuration_is_told_under_its_group() {
    let answer = get(admin_server(), "/configz").await;
    let value: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let configuration = &value["kubeproxy.config.k8s.io"];
    assert_eq!(configuration["kind"], "KubeProxyConfiguration");
    assert_eq!(
        configuration["apiVersion"],
        "kubeproxy.config.k8s.io/v1alpha1"
    );
    assert_eq!(configuration["iptables"]["masqueradeBit"], 14);
    assert_eq!(answer.headers["content-type"], "application/json");
}

#[tokio::test]
async fn flags_and_status_are_shown_in_component_bases_words() {
    let warning = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";
    let address = admin_server();
    let answer = get(address, "/flagz").await;
    assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(
        answer.body,
        format!("\nkube-proxy flagz\n{warning}\nbind-address 0.0.0.0\nconfig \n")
    );
    let answer = get(address, "/statusz").await;
    assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        answer.body,
        format!(
            "\nkube-proxy statusz\n{warning}\n\nStarted: Mon Jan  5 00:00:00 UTC 2026\nUp: 0 hr 00 min 00 sec\n\
             Binary version: 1.37.2 (kube-proxy-rs {version})\nEmulation version: 1.37\n\
             Paths: /configz /explain /flagz /healthz /metrics /proxyMode /servers /state /status\n"
        )
    );
}

#[tokio::test]
async fn the_state_is_what_the_app_says() {
    let answer = get(admin_server(), "/state").await;
    assert_eq!(
        (answer.code, answer.body.as_str()),
        (200, r#"{"desired":3}"#)
    );
    let answer = get(admin_server(), "/").await;
    assert_eq!((answer.code, answer.body.as_str()), (200, "<p>"));
    assert_eq!(answer.headers["content-type"], "text/html; charset=utf-8");
    let answer = get(admin_server(), "/status").await;
    assert_eq!(
        (answer.code, answer.body.as_str()),
        (200, r#"{"healthy":true}"#)
    );
    let answer = get(admin_server(), "/state?service=a%2Fb").await;
    assert_eq!(
        (answer.code, answer.body.as_str()),
        (400, "[(\"service\", \"a/b\")]\n")
    );
}

#[tokio::test]
async fn the_metrics_servers_own_health_is_upstreams() {
    let address = admin_server();
    for (path, body) in [
        ("/healthz", "ok"),
        ("/healthz/ping", "ok"),
        ("/healthz?verbose", "[+]ping ok\nhealthz check passed\n"),
        (
            "/healthz?verbose=1&exclude=ping",
            "[+]ping excluded: ok\nhealthz check passed\n",
        ),
        (
            "/healthz?verbose&exclude=etcd",
            "[+]ping ok\nwarn: some health checks cannot be excluded: no matches for \"etcd\"\nhealthz check passed\n",
        ),
    ] {
        let answer = get(address, path).await;
        assert_eq!((answer.code, answer.body.as_str()), (200, body), "{path}");
    }
    let slis = get(address, "/metrics/slis").await.body;
    assert!(
        slis.contains(r#"kubernetes_healthcheck{name="ping",type="healthz"} 1"#),
        "{slis}"
    );
    let total = r#"kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 4"#;
    assert!(slis.contains(total), "{slis}");
}

#[tokio::test]
async fn an_unspecified_address_answers_in_both_families() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let server = Server::bind("test", address.parse().unwrap(), Router::new(), true).unwrap();
        let port = server.local_address().unwrap().port();
        tokio::spawn(server.run());
        assert_eq!(
            get(SocketAddr::new("127.0.0.1".parse().unwrap(), port), "/")
                .await
                .code,
            404
        );
        // A machine without IPv6 has no such loopback.
        let v6 = SocketAddr::new("::1".parse().unwrap(), port);
        if std::net::UdpSocket::bind("[::1]:0").is_ok() {
            assert_eq!(get(v6, "/").await.code, 404, "{address}");
        }
    }
}

#[tokio::test]
async fn a_taken_port_is_fatal_with_hard_fail_only() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = Server::bind("health", address, Router::new(), true).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot listen on {address} for the health server")
    );
    assert_eq!(error.source.kind(), std::io::ErrorKind::AddrInUse);
    let server = Server::bind("health", address, Router::new(), false).unwrap();
    assert_eq!(server.local_address(), None);
}

#[tokio::test]
async fn a_taken_port_is_tried_again_until_it_is_free() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (health, _) = proxy_health();
    let metrics = HealthMetrics::register(&Registry::new()).unwrap();
    let routes = health_routes(health, metrics);
    let server = Server::bind("health", address, routes, false).unwrap();
    let running = tokio::spawn(server.retry_every(Duration::from_millis(1)).run());
    tokio::task::yield_now().await;
    assert!(!running.is_finished());
    drop(taken);
    let connected = async {
        while TcpStream::connect(address).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, connected).await.unwrap();
    assert_eq!(get(address, "/livez").await.code, 200);
}

// === Health checks of Services ===

/// A port that was free a moment ago.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn web() -> ServiceName {
    ServiceName::new("default", "web")
}

fn wanted(pairs: &[(ServiceName, u16)]) -> BTreeMap<ServiceName, u16> {
    pairs.iter().cloned().collect()
}

fn loopback() -> BTreeSet<IpAddr> {
    BTreeSet::from(["127.0.0.1".parse().unwrap()])
}

#[tokio::test]
async fn a_service_with_local_endpoints_answers_upstreams_bytes() {
    let (health, _) = proxy_health();
    let mut servers = ServiceHealthServers::new(health.clone());
    let port = free_port();
    let failures = servers
        .sync(IpFamily::V4, &loopback(), &wanted(&[(web(), port)]))
        .await;
    assert!(failures.is_empty(), "{failures:?}");
    let address = SocketAddr::new("127.0.0.1".parse().unwrap(), port);
    assert_eq!(
        servers.open_ports().collect::<Vec<_>>(),
        [(&web(), address)]
    );

    servers.set_local_endpoints([((IpFamily::V4, web()), 2), ((IpFamily::V6, web()), 1)].into());
    let answer = ask(address, "POST", "/any/path").await;
    assert_eq!(answer.code, 200);
    assert_eq!(
        answer.body,
        "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
    );
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    assert_eq!(answer.headers["x-load-balancing-endpoint-weight"], "2");

    servers.set_local_endpoints(BTreeMap::new());
    let none = get(address, "/").await;
    assert_eq!(none.code, 503);
    assert_eq!(none.headers["x-load-balancing-endpoint-weight"], "0");
}

#[tokio::test]
async fn an_unhealthy_proxy_fails_the_checks_of_services_and_an_ineligible_node_does_not() {
    let (health, hand) = proxy_health();
    let mut servers = ServiceHealthServers::new(health.clone());
    let port = free_port();
    assert!(
        servers
            .sync(IpFamily::V4, &loopback(), &wanted(&[(web(), port)]))
            .await
            .is_empty()
    );
    servers.set_local_endpoints([((IpFamily::V4, web()), 1)].into());
    let address = SocketAddr::new("127.0.0.1".parse().unwrap(), port);
    health.set_node_eligible(false);
    assert_eq!(get(address, "/").await.code, 200);
    health.change_queued(IpFamily::V4);
    hand.advance(Duration::from_mins(1));
    let answer = get(address, "/").await;
    assert_eq!(answer.code, 503);
    assert!(
        answer
            .body
            .contains("\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": false")
    );
}

#[tokio::test]
async fn ports_are_closed_and_may_move_to_another_service_at_once() {
    let (health, _) = proxy_health();
    let mut servers = ServiceHealthServers::new(health);
    let port = free_port();
    let other = ServiceName::new("default", "other");
    assert!(
        servers
            .sync(IpFamily::V4, &loopback(), &wanted(&[(web(), port)]))
            .await
            .is_empty()
    );
    let moved = servers
        .sync(IpFamily::V4, &loopback(), &wanted(&[(other.clone(), port)]))
        .await;
    assert!(moved.is_empty(), "{moved:?}");
    let address = SocketAddr::new("127.0.0.1".parse().unwrap(), port);
    assert!(get(address, "/").await.body.contains("\"name\": \"other\""));
    assert!(
        servers
            .sync(IpFamily::V4, &loopback(), &wanted(&[]))
            .await
            .is_empty()
    );
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_port_that_is_taken_is_reported_and_tried_again() {
    let (health, _) = proxy_health();
    let mut servers = ServiceHealthServers::new(health);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let wanted = wanted(&[(web(), address.port())]);
    let failures = servers.sync(IpFamily::V4, &loopback(), &wanted).await;
    let texts: Vec<String> = failures.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [format!(
            "cannot listen on {address} for the health check of Service default/web"
        )]
    );
    drop(taken);
    assert!(
        servers
            .sync(IpFamily::V4, &loopback(), &wanted)
            .await
            .is_empty()
    );
    assert_eq!(get(address, "/").await.code, 503);
}

#[tokio::test]
async fn each_family_opens_and_closes_its_own_ports() {
    if std::net::UdpSocket::bind("[::1]:0").is_err() {
        return;
    }
    let (health, _) = proxy_health();
    let mut servers = ServiceHealthServers::new(health);
    let port = free_port();
    let wanted = wanted(&[(web(), port)]);
    // Match-all in both families: two strict sockets on one port.
    let everywhere = |family| match family {
        IpFamily::V4 => BTreeSet::from(["0.0.0.0".parse().unwrap()]),
        IpFamily::V6 => BTreeSet::from(["::".parse().unwrap()]),
    };
    for family in IpFamily::ALL {
        let failures = servers.sync(family, &everywhere(family), &wanted).await;
        assert!(failures.is_empty(), "{failures:?}");
    }
    assert_eq!(servers.open_ports().count(), 2);
    servers
        .sync(IpFamily::V4, &everywhere(IpFamily::V4), &BTreeMap::new())
        .await;
    assert_eq!(servers.open_ports().count(), 1);
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    assert_eq!(
        get(SocketAddr::new("::1".parse().unwrap(), port), "/")
            .await
            .code,
        503
    );
}
