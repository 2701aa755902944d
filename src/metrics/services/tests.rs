// SPDX-License-Identifier: Apache-2.0
#![expect(clippy::float_cmp, reason = "counters of whole numbers")]

use super::*;

fn port(name: &str) -> CountedPort {
    CountedPort {
        namespace: "shop".to_owned(),
        service: name.to_owned(),
        port: "http".to_owned(),
        protocol: Protocol::Tcp,
        family: IpFamily::V4,
    }
}

fn server(at: &str) -> VirtualServerKey {
    let at: std::net::SocketAddr = at.parse().unwrap();
    VirtualServerKey::Address {
        address: at.ip(),
        port: at.port(),
        protocol: Protocol::Tcp,
    }
}

fn endpoint(at: &str) -> RealServerKey {
    let at: std::net::SocketAddr = at.parse().unwrap();
    RealServerKey {
        address: at.ip(),
        port: at.port(),
    }
}

fn counts(connections: u64) -> Counts {
    Counts {
        connections,
        packets: (connections * 10, connections * 5),
        bytes: (connections * 1000, connections * 500),
    }
}

fn sample(name: &str, at: &str, connections: u64) -> Sample {
    Sample {
        port: port(name),
        server: server(at),
        counts: counts(connections),
        remembered: Remembered {
            active: 2,
            inactive: 1,
        },
        endpoints: BTreeMap::new(),
    }
}

fn with_endpoint(sample: Sample, at: &str, connections: u64) -> Sample {
    let mut endpoints = sample.endpoints;
    let remembered = Remembered::default();
    endpoints.insert(endpoint(at), (counts(connections), remembered));
    Sample {
        endpoints,
        ..sample
    }
}

/// Everything, for the reference page.
pub(in crate::metrics) fn everything() -> Vec<MetricFamily> {
    let mut counters = ServiceCounters::new(1);
    counters.admit(&[port("web")].into());
    counters.take(&[with_endpoint(
        sample("web", "10.96.0.1:80", 1),
        "10.1.0.1:80",
        1,
    )]);
    counters.families(false).unwrap()
}

struct Scraped(ServiceCounters);

impl Scraped {
    fn new(limit: usize) -> Self {
        Self(ServiceCounters::new(limit))
    }

    /// One scrape: all ports of the samples are wanted.
    fn scrape(&mut self, samples: &[Sample]) -> BTreeMap<String, f64> {
        let wanted = samples.iter().map(|sample| sample.port.clone()).collect();
        self.0.admit(&wanted);
        self.0.take(samples);
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&self.0.families(false).unwrap())
            .unwrap();
        let series = text.lines().filter(|line| !line.starts_with('#'));
        series
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(series, value)| (series.to_owned(), value.parse().unwrap()))
            .collect()
    }

    fn connections(&mut self, samples: &[Sample]) -> f64 {
        self.scrape(samples)
            .iter()
            .filter(|(series, _)| series.starts_with("kube_proxy_rs_service_connections_total"))
            .map(|(_, value)| value)
            .sum()
    }
}

const VIP: &str = "10.96.0.1:80";

#[test]
fn virtual_servers_of_a_port_are_added_up() {
    let mut scraped = Scraped::new(10);
    let series = scraped.scrape(&[sample("web", VIP, 3), sample("web", "203.0.113.1:80", 4)]);
    let labels = "ip_family=\"IPv4\",protocol=\"TCP\",service_name=\"web\",service_namespace=\"shop\",service_port=\"http\"";
    for (name, more, value) in [
        ("connections_total", "", 7.0),
        ("packets_total", "direction=\"in\",", 70.0),
        ("packets_total", "direction=\"out\",", 35.0),
        ("bytes_total", "direction=\"in\",", 7000.0),
        ("bytes_total", "direction=\"out\",", 3500.0),
        ("active_connections", "", 4.0),
        ("inactive_connections", "", 2.0),
    ] {
        let name = format!("kube_proxy_rs_service_{name}{{{more}{labels}}}");
        assert_eq!(series.get(&name), Some(&value), "{name}: {series:#?}");
    }
}

#[test]
fn counters_go_on_when_their_virtual_server_is_made_anew() {
    let mut scraped = Scraped::new(10);
    // What the kernel has counted before.
    assert_eq!(scraped.connections(&[sample("web", VIP, 100)]), 100.0);
    assert_eq!(scraped.connections(&[sample("web", VIP, 110)]), 110.0);
    // Deleted and made anew between two scrapes: seen by a counter that went back.
    assert_eq!(scraped.connections(&[sample("web", VIP, 7)]), 117.0);
    assert_eq!(scraped.connections(&[sample("web", VIP, 8)]), 118.0);
    // Gone in one scrape, back with more than before.
    let other = sample("web", "10.96.0.2:80", 0);
    assert_eq!(scraped.connections(std::slice::from_ref(&other)), 118.0);
    assert_eq!(scraped.connections(&[other, sample("web", VIP, 20)]), 138.0);
}

#[test]
fn one_counter_that_goes_back_shows_a_new_server() {
    let before = counts(5);
    let now = Counts {
        connections: 7,
        packets: (1, 1),
        bytes: (9000, 9000),
    };
    assert_eq!(now.since(before), now.all());
    assert_eq!(before.since(before), [0; 5]);
}

#[test]
fn a_virtual_server_that_passes_to_another_service_takes_nothing_along() {
    let mut scraped = Scraped::new(10);
    scraped.scrape(&[sample("old", VIP, 50), sample("new", "10.96.0.2:80", 1)]);
    // The old Service is gone, and with it its series.
    let moved = [sample("new", VIP, 52), sample("new", "10.96.0.2:80", 1)];
    assert_eq!(scraped.connections(&moved), 3.0);
}

#[test]
fn a_service_that_comes_again_begins_anew() {
    let mut scraped = Scraped::new(10);
    assert_eq!(scraped.connections(&[sample("web", VIP, 50)]), 50.0);
    assert_eq!(scraped.connections(&[]), 0.0);
    assert_eq!(scraped.connections(&[sample("web", VIP, 2)]), 2.0);
}

#[test]
fn no_more_series_than_the_limit_and_the_rest_is_told() {
    let mut scraped = Scraped::new(2);
    let samples = |names: &[&str]| -> Vec<Sample> {
        let names = names.iter();
        names
            .map(|name| sample(name, &format!("10.96.0.{}:80", name.len()), 1))
            .collect()
    };
    let left_out = |series: &BTreeMap<String, f64>, kind: &str| {
        series[&format!("kube_proxy_rs_service_metrics_left_out{{kind=\"{kind}\"}}")]
    };
    let counted = |series: &BTreeMap<String, f64>| -> Vec<String> {
        let names = series
            .keys()
            .filter(|name| name.contains("_connections_total"));
        let name = |series: &String| series.split("service_name=\"").nth(1).unwrap().to_owned();
        names
            .map(|series| name(series).split('"').next().unwrap().to_owned())
            .collect()
    };
    let series = scraped.scrape(&samples(&["b", "cc", "ddd"]));
    assert_eq!(counted(&series), ["b", "cc"]);
    assert_eq!(left_out(&series, "service_port"), 1.0);
    // Those that are counted stay so, whatever comes.
    let series = scraped.scrape(&samples(&["aaaa", "b", "cc", "ddd"]));
    assert_eq!(counted(&series), ["b", "cc"]);
    assert_eq!(left_out(&series, "service_port"), 2.0);
    let series = scraped.scrape(&samples(&["aaaa", "cc", "ddd"]));
    assert_eq!(counted(&series), ["aaaa", "cc"]);
    assert_eq!(left_out(&series, "service_port"), 1.0);
    assert_eq!(left_out(&series, "endpoint"), 0.0);
}

#[test]
fn endpoints_are_counted_up_to_the_limit_and_go_with_their_servers() {
    let mut scraped = Scraped::new(2);
    let all = ["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"];
    let of = |endpoints: &[&str], connections| {
        let web = sample("web", VIP, 9);
        let add = |sample, at: &&str| with_endpoint(sample, at, connections);
        endpoints.iter().fold(web, add)
    };
    let connections = |series: &BTreeMap<String, f64>| -> Vec<(String, f64)> {
        let prefix = "kube_proxy_rs_endpoint_connections_total{endpoint_address=\"";
        let ours = series.iter().filter_map(|(name, value)| {
            let address = name.strip_prefix(prefix)?.split('"').next()?;
            Some((address.to_owned(), *value))
        });
        ours.collect()
    };
    let series = scraped.scrape(&[of(&all, 3)]);
    let found = [
        ("10.1.0.1:80".to_owned(), 3.0),
        ("10.1.0.2:80".to_owned(), 3.0),
    ];
    assert_eq!(connections(&series), found);
    let left_out = "kube_proxy_rs_service_metrics_left_out{kind=\"endpoint\"}";
    assert_eq!(series[left_out], 1.0);
    // One leaves; the next scrape has room for the third.
    scraped.scrape(&[of(&all[1..], 4)]);
    let series = scraped.scrape(&[of(&all[1..], 4)]);
    let found = [
        ("10.1.0.2:80".to_owned(), 4.0),
        ("10.1.0.3:80".to_owned(), 4.0),
    ];
    assert_eq!(connections(&series), found);
}
