// SPDX-License-Identifier: Apache-2.0

use super::super::super::Problem;
use super::*;
use kpr_core::model::testing::ip;

fn meta(annotations: &[(&str, &str)]) -> ObjectMeta {
    let pairs = annotations.iter();
    ObjectMeta {
        name: Some("web".to_owned()),
        annotations: Some(
            pairs
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        ),
        ..ObjectMeta::default()
    }
}

fn options(annotations: &[(&str, &str)]) -> (Option<IpvsOptions>, Vec<Problem>) {
    let meta = meta(annotations);
    let mut problems = Problems::of("Service", &meta);
    let options = ipvs_options(&meta, &Annotations::unlimited(), &mut problems);
    (options.map(Arc::unwrap_or_clone), problems.found)
}

fn good(annotations: &[(&str, &str)]) -> IpvsOptions {
    let (options, problems) = options(annotations);
    assert_eq!(problems, []);
    options.unwrap()
}

/// A value that is refused: its problem names the annotation and the value, and nothing is set.
fn bad(key: &str, value: &str) {
    let (options, problems) = options(&[(key, value)]);
    assert_eq!(options, None, "{key}: {value}");
    assert_eq!(problems.len(), 1, "{key}: {value}");
    let text = problems[0].to_string();
    let field = format!("metadata.annotations[{key}]");
    assert!(
        text.contains(&field) && text.contains(&format!("{value:?}")),
        "{text}"
    );
    assert_eq!(problems[0].reason, reason::ANNOTATION);
}

fn weight_of(number: u16) -> Weight {
    Weight::new(number).unwrap()
}

#[test]
fn services_without_settings_hold_none() {
    assert_eq!(options(&[]), (None, Vec::new()));
    assert_eq!(options(&[("example.com/x", "y")]), (None, Vec::new()));
    let default = [("kube-proxy-rs.io/forwarding-method", "masquerade")];
    assert_eq!(options(&default), (None, Vec::new()));
}

#[test]
fn every_setting_is_read() {
    let options = good(&[
        ("kube-proxy-rs.io/scheduler", "mh"),
        ("kube-proxy-rs.io/scheduler-flags", "port, fallback"),
        (
            "kube-proxy-rs.io/weights",
            "10.1.0.0/16=3, 10.2.0.1=0,fd00::1=7",
        ),
        ("kube-proxy-rs.io/weight", "2"),
        ("kube-proxy-rs.io/drain-limit", "1m30s"),
        ("kube-proxy-rs.io/persistence-netmask", "ipv4/24,ipv6/64"),
        ("kube-proxy-rs.io/forwarding-method", "direct-routing"),
        ("kube-proxy-rs.io/upper-threshold", "100"),
        ("kube-proxy-rs.io/lower-threshold", "80"),
        ("kube-proxy-rs.io/slow-start", "30s"),
        ("kube-proxy-rs.io/one-packet", "true"),
        (
            "kube-proxy-rs.io/topology-weights",
            "other=2, same-zone=5,same-node=9",
        ),
    ]);
    let expected = IpvsOptions {
        scheduler: Some(Scheduler::Mh),
        hashes_port: Some(true),
        weights: Weights::from_iter([
            ("10.1.0.0/16".parse().unwrap(), weight_of(3)),
            ("10.2.0.1/32".parse().unwrap(), weight_of(0)),
            ("fd00::1/128".parse().unwrap(), weight_of(7)),
        ]),
        weight: Some(weight_of(2)),
        drain_limit: Some(Duration::from_secs(90)),
        persistence_ipv4: Some(24),
        persistence_ipv6: Some(64),
        forwarding: ForwardingMethod::DirectRouting,
        thresholds: Thresholds {
            upper: 100,
            lower: 80,
        },
        slow_start: Some(Duration::from_secs(30)),
        one_packet: true,
        place_weights: Some(PlaceWeights {
            same_node: weight_of(9),
            same_zone: weight_of(5),
            other: weight_of(2),
        }),
        is_counted: false,
    };
    assert_eq!(options, expected);
}

#[test]
fn services_are_counted_where_the_operator_wants_it() {
    let counts = |namespace: Option<&str>, rules: &Annotations| {
        let meta = ObjectMeta {
            namespace: namespace.map(str::to_owned),
            ..meta(&[])
        };
        let options = ipvs_options(&meta, rules, &mut Problems::of("Service", &meta));
        options.is_some_and(|options| options.is_counted)
    };
    let mut rules = Annotations::default();
    assert!(!counts(Some("shop"), &rules));
    rules.counted.namespaces = ["shop".to_owned(), "default".to_owned()].into();
    assert!(counts(Some("shop"), &rules) && counts(None, &rules));
    assert!(!counts(Some("other"), &rules));
}

#[test]
fn forwarding_methods_are_told_apart() {
    let method = |name| good(&[("kube-proxy-rs.io/forwarding-method", name)]).forwarding;
    let gue = |port| ForwardingMethod::Tunnel(Tunnel::Gue(NonZeroU16::new(port).unwrap()));
    assert_eq!(method("ipip"), ForwardingMethod::Tunnel(Tunnel::IpIp));
    assert_eq!(method("gre"), ForwardingMethod::Tunnel(Tunnel::Gre));
    assert_eq!(method("gue"), gue(6080));
    let elsewhere = good(&[
        ("kube-proxy-rs.io/forwarding-method", "gue"),
        ("kube-proxy-rs.io/gue-port", "5555"),
    ]);
    assert_eq!(elsewhere.forwarding, gue(5555));
}

#[test]
fn kube_routers_names_mean_the_same_and_ours_win() {
    let theirs = [
        ("kube-router.io/service.dsr", "tunnel"),
        ("kube-router.io/service.hairpin", ""),
        ("kube-router.io/service.schedflags", "flag-1,flag-2"),
        ("kube-router.io/service.scheduler", "mh"),
    ];
    let options = good(&theirs);
    assert_eq!(options.scheduler, Some(Scheduler::Mh));
    assert_eq!(options.hashes_port, Some(true));
    assert_eq!(options.forwarding, ForwardingMethod::Tunnel(Tunnel::IpIp));
    let both = [theirs[3], ("kube-proxy-rs.io/scheduler", "sh")];
    assert_eq!(good(&both).scheduler, Some(Scheduler::Sh));
    assert_eq!(
        good(&[("kube-router.io/service.schedflags", "flag-1")]).hashes_port,
        Some(false)
    );
}

#[test]
fn bad_values_are_named_and_ignored() {
    bad("kube-proxy-rs.io/scheduler", "fastest");
    bad("kube-router.io/service.scheduler", "");
    bad("kube-proxy-rs.io/scheduler-flags", "port,stripes");
    bad("kube-router.io/service.schedflags", "flag-3");
    bad("kube-router.io/service.dsr", "route");
    bad("kube-proxy-rs.io/forwarding-method", "nat");
    bad("kube-proxy-rs.io/gue-port", "0");
    bad("kube-proxy-rs.io/weight", "65535");
    bad("kube-proxy-rs.io/weight", "-1");
    bad("kube-proxy-rs.io/weights", "10.0.0.1");
    bad("kube-proxy-rs.io/weights", "10.0.0.1=1,nowhere=2");
    bad("kube-proxy-rs.io/drain-limit", "-5s");
    bad("kube-proxy-rs.io/drain-limit", "soon");
    bad("kube-proxy-rs.io/persistence-netmask", "ipv4/33");
    bad("kube-proxy-rs.io/persistence-netmask", "ipv4/0");
    bad("kube-proxy-rs.io/persistence-netmask", "255.255.255.0");
    bad("kube-proxy-rs.io/one-packet", "yes");
    bad("kube-proxy-rs.io/slow-start", "-1s");
    bad("kube-proxy-rs.io/slow-start", "30");
    for places in [
        "",
        "other=5",
        "same-zone=0",
        "same-zone=5,other=0",
        "same-node=3,zone=2",
        "same-zone",
        "same-zone=65535",
        "same-zone=9,same-rack=1",
    ] {
        bad("kube-proxy-rs.io/topology-weights", places);
    }
    bad("kube-proxy-rs.io/upper-threshold", "0");
    bad("kube-proxy-rs.io/upper-threshold", "1000000001");
    bad("kube-proxy-rs.io/upper-threshold", "-1");
    bad("kube-proxy-rs.io/upper-threshold", "ten");
    bad("kube-proxy-rs.io/lower-threshold", "5");
}

/// The kernel refuses a lower threshold above the upper one, and the real server with it.
#[test]
fn a_lower_threshold_needs_an_upper_one_that_is_not_lower() {
    for lower in ["101", "0", "many"] {
        let (options, problems) = options(&[
            ("kube-proxy-rs.io/lower-threshold", lower),
            ("kube-proxy-rs.io/upper-threshold", "100"),
        ]);
        let kept = Thresholds {
            upper: 100,
            lower: 0,
        };
        assert_eq!(options.unwrap().thresholds, kept, "{lower}");
        let [problem] = &problems[..] else {
            panic!("{problems:?}")
        };
        let text = problem.to_string();
        assert!(
            text.contains("lower-threshold") && text.contains("1 to 100"),
            "{text}"
        );
    }
}

#[test]
fn a_bad_value_of_ours_leaves_kube_routers() {
    let (options, problems) = options(&[
        ("kube-router.io/service.scheduler", "lc"),
        ("kube-proxy-rs.io/scheduler", "fastest"),
    ]);
    assert_eq!(options.unwrap().scheduler, Some(Scheduler::Lc));
    assert_eq!(problems.len(), 1);
}

#[test]
fn names_that_nobody_reads_are_named() {
    for key in ["kube-proxy-rs.io/schedular", "kube-router.io/service.local"] {
        let (options, problems) = options(&[(key, "x")]);
        assert_eq!(options, None);
        assert!(problems[0].field.contains(key), "{problems:?}");
    }
}

#[test]
fn a_slice_may_weigh_its_endpoints() {
    let meta = meta(&[
        ("kube-proxy-rs.io/weight", "4"),
        ("kube-proxy-rs.io/weights", "10.1.0.1=0"),
    ]);
    let mut problems = Problems::of("EndpointSlice", &meta);
    let weights = SliceWeights::of(&meta, &Annotations::unlimited(), &mut problems);
    assert_eq!(problems.found, []);
    assert_eq!(weights.of_endpoint(ip("10.1.0.1")), Some(weight_of(0)));
    assert_eq!(weights.of_endpoint(ip("10.1.0.2")), Some(weight_of(4)));
    assert_eq!(SliceWeights::default().of_endpoint(ip("10.1.0.1")), None);
}

#[test]
fn a_bad_weight_of_a_slice_is_named() {
    let meta = meta(&[("kube-proxy-rs.io/weight", "heavy")]);
    let mut problems = Problems::of("EndpointSlice", &meta);
    let weights = SliceWeights::of(&meta, &Annotations::unlimited(), &mut problems);
    assert_eq!(weights.of_endpoint(ip("10.1.0.1")), None);
    assert_eq!(problems.found.len(), 1);
    assert!(problems.found[0].message.contains("\"heavy\""));
}

#[test]
fn what_the_operator_does_not_allow_is_ignored_and_said() {
    let all = [
        ("kube-proxy-rs.io/drain-limit", "1m"),
        ("kube-proxy-rs.io/forwarding-method", "gue"),
        ("kube-proxy-rs.io/gue-port", "8472"),
        ("kube-proxy-rs.io/one-packet", "true"),
        ("kube-proxy-rs.io/persistence-netmask", "ipv4/24"),
        ("kube-proxy-rs.io/scheduler", "mh"),
        ("kube-proxy-rs.io/scheduler-flags", "port"),
        ("kube-proxy-rs.io/slow-start", "30s"),
        ("kube-proxy-rs.io/topology-weights", "same-zone=9"),
        ("kube-proxy-rs.io/upper-threshold", "9"),
        ("kube-proxy-rs.io/weight", "2"),
        ("kube-proxy-rs.io/weights", "10.0.0.1=3"),
        ("kube-router.io/service.dsr", "tunnel"),
        ("kube-router.io/service.scheduler", "mh"),
        ("kube-router.io/service.schedflags", "port"),
    ];
    let with = |allowed: &[Setting], annotations: &[(&str, &str)]| {
        let meta = meta(annotations);
        let mut problems = Problems::of("Service", &meta);
        let rules = Annotations {
            allowed: allowed.iter().copied().collect(),
            ..Annotations::default()
        };
        let options = ipvs_options(&meta, &rules, &mut problems);
        let weights = SliceWeights::of(&meta, &rules, &mut Problems::of("EndpointSlice", &meta));
        let weight = weights.of_endpoint(ip("10.0.0.1"));
        (options.is_some(), weight.is_some(), problems.found)
    };
    let (has_options, has_weight, problems) = with(&[], &all);
    assert!(!has_options && !has_weight);
    assert_eq!(problems.len(), all.len());
    for problem in &problems {
        let text = problem.to_string();
        assert!(
            text.contains("--service-annotations does not list"),
            "{text}"
        );
    }
    // Each setting has its annotations, and no others.
    for setting in Setting::ALL {
        for annotation in &all {
            let (_, _, problems) = with(&[setting], &[*annotation]);
            let is_its = Setting::of(annotation.0) == Some(setting);
            assert_eq!(problems.is_empty(), is_its, "{setting}: {annotation:?}");
        }
    }
    let default = [("kube-proxy-rs.io/forwarding-method", "masquerade")];
    assert_eq!(with(&[], &default), (false, false, Vec::new()));
}

#[test]
fn durations_end_at_the_operators() {
    let cut = |annotation: &str| {
        let meta = meta(&[(annotation, "2562047h")]);
        let mut problems = Problems::of("Service", &meta);
        let options = ipvs_options(&meta, &Annotations::default(), &mut problems).unwrap();
        let [problem] = &problems.found[..] else {
            panic!("{:?}", problems.found)
        };
        (options, problem.message.clone())
    };
    let (options, message) = cut("kube-proxy-rs.io/drain-limit");
    assert_eq!(options.drain_limit, Some(Duration::from_hours(24)));
    assert!(
        message.ends_with("--service-max-drain-limit, which is used instead: 24h0m0s"),
        "{message}"
    );
    let (options, message) = cut("kube-proxy-rs.io/slow-start");
    assert_eq!(options.slow_start, Some(Duration::from_mins(15)));
    assert!(
        message.ends_with("--service-max-slow-start, which is used instead: 15m0s"),
        "{message}"
    );
}

#[test]
fn places_that_are_not_named_have_the_weight_of_those_beside_them() {
    let of = |text| {
        let options = good(&[("kube-proxy-rs.io/topology-weights", text)]);
        let weights = options.place_weights.unwrap();
        [weights.same_node, weights.same_zone, weights.other].map(Weight::get)
    };
    assert_eq!(of("same-zone=100,other=10"), [100, 100, 10]);
    assert_eq!(of("same-zone=7"), [7, 7, 1]);
    assert_eq!(of("same-node=7"), [7, 1, 1]);
    assert_eq!(of("same-node=7,other=3"), [7, 3, 3]);
    assert_eq!(of("same-node=4,same-zone=2,other=1"), [4, 2, 1]);
}

#[test]
fn a_slow_start_of_no_time_is_none() {
    assert_eq!(
        options(&[("kube-proxy-rs.io/slow-start", "0s")]),
        (None, Vec::new())
    );
}

#[test]
fn weights_are_read_up_to_a_limit() {
    let many: Vec<String> = (0..20_000)
        .map(|n: u32| format!("10.{}.{}.{}=7", n >> 16, (n >> 8) & 255, n & 255))
        .collect();
    let (options, problems) = options(&[("kube-proxy-rs.io/weights", &many.join(","))]);
    let options = options.unwrap();
    assert_eq!(options.weights.of(ip("10.0.3.231")), Some(weight_of(7)));
    assert_eq!(options.weights.of(ip("10.0.3.232")), None);
    assert_eq!(problems.len(), 1);
}

#[test]
fn a_long_value_is_not_shown_as_a_whole() {
    let (_, problems) = options(&[("kube-proxy-rs.io/scheduler", &"x".repeat(246_000))]);
    assert!(problems[0].to_string().len() < 600);
}

#[test]
fn an_object_has_so_many_problems_and_no_more() {
    let names: Vec<String> = (0..9_000)
        .map(|n| format!("kube-proxy-rs.io/{n}"))
        .collect();
    let annotations: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "")).collect();
    let (_, problems) = options(&annotations);
    assert_eq!(problems.len(), 101);
    let last = problems.last().unwrap().to_string();
    assert_eq!(
        last,
        "Service default/web: has more problems than are listed"
    );
}
