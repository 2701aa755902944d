// SPDX-License-Identifier: Apache-2.0
//! Random command lines: every flag of kube-proxy, in every form that its parsers take.

use kpr_testkit::differential::dice::Dice;

const BOOLS: &[&str] = &[
    "true", "false", "1", "0", "t", "F", "TRUE", "yes", "", "tRue",
];
const WHOLE: &[&str] = &[
    "0",
    "5",
    "-1",
    "14",
    "0x10",
    "010",
    "0b11",
    "0o17",
    "1_000",
    "1__0",
    "08",
    "1.5",
    "",
    "abc",
    "+7",
    "2147483648",
];
const DURATIONS: &[&str] = &[
    "30s", "0", "0s", "1h30m", "100ms", "5", "-1s", "", "soon", "1m0.5s",
];
const ADDRESSES: &[&str] = &[
    "0.0.0.0",
    "::",
    "192.0.2.1",
    "fd00::1",
    "",
    "localhost",
    "192.0.2.01",
    " 192.0.2.1 ",
];
const SERVERS: &[&str] = &[
    "0.0.0.0:10256",
    "[::1]:1",
    "192.0.2.1:99",
    "",
    "localhost:1",
    "1.2.3.4:0",
    "1.2.3.4:70000",
    "[::]:80",
];
const LISTS: &[&str] = &[
    "10.0.0.0/8",
    "10.0.0.0/8,fd00::/8",
    "primary",
    "all,localhost",
    "",
    "primary,primary",
    "10.0.0.0",
    ",",
    "\"10.0.0.0/8\"",
    "\"10.0.0.0/8\",fd00::/8",
    "\"10.0.0.0/8,fd00::/8\"",
    "10.0.0.0/8\"",
    "\"10.0.0.0/8\"x",
    "\"10.0.0.0/8",
    "\"\"\"\"",
];

/// Flags with values for them.
const FLAGS: &[(&str, &[&str])] = &[
    ("bind-address", ADDRESSES),
    ("bind-address-hard-fail", BOOLS),
    (
        "cluster-cidr",
        &[
            "10.0.0.0/8",
            "10.0.0.0/8,fd00::/56",
            "10.0.0.0/8, fd00::/56",
            "",
            ",",
            "x",
        ],
    ),
    ("config-sync-period", DURATIONS),
    ("conntrack-max-per-core", WHOLE),
    ("conntrack-min", WHOLE),
    ("conntrack-tcp-be-liberal", BOOLS),
    ("conntrack-tcp-timeout-close-wait", DURATIONS),
    ("conntrack-tcp-timeout-established", DURATIONS),
    ("conntrack-udp-timeout", DURATIONS),
    ("conntrack-udp-timeout-stream", DURATIONS),
    (
        "detect-local-mode",
        &[
            "ClusterCIDR",
            "NodeCIDR",
            "BridgeInterface",
            "InterfaceNamePrefix",
            "",
            "clustercidr",
        ],
    ),
    (
        "feature-gates",
        &[
            "KubeProxyIPVS=true",
            "KubeProxyIPVS=false",
            "LoggingAlphaOptions=true",
            "Bogus=true",
            "KubeProxyIPVS",
            "KubeProxyIPVS=maybe",
            "",
            "WatchListClient=true,NativeHistograms=false",
            "SupportIPVSProxyMode=true",
            "AllAlpha=true",
            "AllAlpha=false",
            "AllBeta=true",
            "AllBeta=false",
            "AllBeta=true,KubeProxyIPVS=false",
        ],
    ),
    ("healthz-bind-address", SERVERS),
    ("hostname-override", &["Node-1", "", "  ", " a "]),
    ("init-only", BOOLS),
    ("iptables-localhost-nodeports", BOOLS),
    ("iptables-masquerade-bit", WHOLE),
    ("iptables-min-sync-period", DURATIONS),
    ("iptables-sync-period", DURATIONS),
    ("ipvs-exclude-cidrs", LISTS),
    ("ipvs-min-sync-period", DURATIONS),
    ("ipvs-scheduler", &["rr", "lc", "", "sh"]),
    ("ipvs-strict-arp", BOOLS),
    ("ipvs-sync-period", DURATIONS),
    ("ipvs-tcp-timeout", DURATIONS),
    ("ipvs-tcpfin-timeout", DURATIONS),
    ("ipvs-udp-timeout", DURATIONS),
    ("kube-api-burst", WHOLE),
    ("kube-api-content-type", &["application/json", ""]),
    (
        "kube-api-qps",
        &["5", "2.5", "1e1", ".5", "", "fast", "-1", "1e40"],
    ),
    ("kubeconfig", &["/k", ""]),
    ("log-flush-frequency", DURATIONS),
    ("log-json-info-buffer-size", &["0", "4Ki", "abc"]),
    ("log-json-split-stream", BOOLS),
    ("log-text-info-buffer-size", &["0", "4Ki", "abc"]),
    ("log-text-split-stream", BOOLS),
    ("logging-format", &["text", "json", "xml", ""]),
    ("masquerade-all", BOOLS),
    ("master", &["http://m", ""]),
    ("metrics-bind-address", SERVERS),
    ("nodeport-addresses", LISTS),
    ("oom-score-adj", &["-999", "0", "1001", "-0x10", "x"]),
    ("pod-bridge-interface", &["cni0", ""]),
    ("pod-interface-name-prefix", &["veth", ""]),
    ("profiling", BOOLS),
    ("proxy-mode", &["ipvs", "iptables", "", "userspace", "IPVS"]),
    ("show-hidden-metrics-for-version", &["1.36", "1.35", ""]),
    (
        "v",
        &["0", "2", "10", "-1", "x", "2147483647", "2147483648"],
    ),
    ("vmodule", &["a=1", "a=1,b=2", "a", "", "=1", "a=x"]),
    // Gone, or never there.
    ("conntrack-max", &["0"]),
    ("logtostderr", &["true"]),
    ("bogus", &["1"]),
];

/// A command line without the program.
pub(crate) fn flags(dice: &mut Dice) -> Vec<String> {
    let mut all = Vec::new();
    if dice.chance(40) {
        all.push(format!("--proxy-mode={}", dice.pick(&["ipvs", "iptables"])));
    }
    for _ in 0..=dice.below(4) {
        let (name, values) = dice.pick(FLAGS);
        // Most of the first values are good ones.
        let good = values.len().min(3);
        let value = if dice.chance(60) {
            dice.pick(&values[..good])
        } else {
            dice.pick(values)
        };
        let shown = if dice.chance(5) {
            name.replace('-', "_")
        } else {
            name.to_owned()
        };
        match dice.below(20) {
            0 => all.extend([format!("--{shown}"), value.to_owned()]),
            1 if values == BOOLS => all.push(format!("--{shown}")),
            2 if name == "v" => all.push(format!("-v{value}")),
            3 if name == "v" => all.push(format!("-v={value}")),
            _ => all.push(format!("--{shown}={value}")),
        }
    }
    if dice.chance(2) {
        all.push(dice.pick(&["stray", "", "-x", "--"]).to_owned());
    }
    all
}
