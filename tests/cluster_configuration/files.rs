// SPDX-License-Identifier: Apache-2.0
//! Random configuration files: every field, in every form that people and templates write, and
//! with what goes wrong on the way.

use kpr_testkit::differential::dice::Dice;

use Kind::{Bool, Duration, Flush, Gates, List, Number, Size, Text, Vmodule, Whole};

/// What a field holds, and values of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Bool,
    Whole(&'static [&'static str]),
    Number,
    Text(&'static [&'static str]),
    Duration,
    Flush,
    List(&'static [&'static str]),
    Gates,
    Size,
    Vmodule,
}

const ADDRESSES: &[&str] = &[
    "0.0.0.0",
    "\"::\"",
    "192.0.2.1",
    "192.0.2.01",
    "fd00::1",
    "localhost",
    "256.1.1.1",
];
const SERVERS: &[&str] = &[
    "0.0.0.0",
    "192.0.2.1:1234",
    "\"[::1]:10256\"",
    "\"::1\"",
    "127.0.0.1:0",
    "127.0.0.1:70000",
    ":10256",
    "localhost:1",
];
const RANGES: &[&str] = &[
    "10.0.0.0/8",
    "10.0.0.0/8,fd00::/56",
    "10.0.0.0/8, fd00::/56",
    "10.0.0.0",
];

pub(crate) const FIELDS: &[(&str, Kind)] = &[
    ("bindAddress", Text(ADDRESSES)),
    ("bindAddressHardFail", Bool),
    (
        "clientConnection.acceptContentTypes",
        Text(&["application/json"]),
    ),
    ("clientConnection.burst", Whole(&["100"])),
    ("clientConnection.contentType", Text(&["application/json"])),
    (
        "clientConnection.kubeconfig",
        Text(&["/var/lib/kube-proxy/kubeconfig.conf"]),
    ),
    ("clientConnection.qps", Number),
    ("clusterCIDR", Text(RANGES)),
    ("configSyncPeriod", Duration),
    ("conntrack.maxPerCore", Whole(&["32768"])),
    ("conntrack.min", Whole(&["131072"])),
    ("conntrack.tcpBeLiberal", Bool),
    ("conntrack.tcpCloseWaitTimeout", Duration),
    ("conntrack.tcpEstablishedTimeout", Duration),
    ("conntrack.udpStreamTimeout", Duration),
    ("conntrack.udpTimeout", Duration),
    ("detectLocal.bridgeInterface", Text(&["cni0"])),
    ("detectLocal.interfaceNamePrefix", Text(&["veth", "cali"])),
    (
        "detectLocalMode",
        Text(&[
            "ClusterCIDR",
            "NodeCIDR",
            "BridgeInterface",
            "InterfaceNamePrefix",
        ]),
    ),
    ("enableProfiling", Bool),
    ("featureGates", Gates),
    ("healthzBindAddress", Text(SERVERS)),
    ("hostnameOverride", Text(&["Node-1", "\" node-1 \""])),
    ("iptables.localhostNodePorts", Bool),
    ("iptables.masqueradeAll", Bool),
    ("iptables.masqueradeBit", Whole(&["14", "31"])),
    ("iptables.minSyncPeriod", Duration),
    ("iptables.syncPeriod", Duration),
    (
        "ipvs.excludeCIDRs",
        List(&["10.0.0.0/8", "fd00::/8", "10.0.0.0"]),
    ),
    ("ipvs.minSyncPeriod", Duration),
    ("ipvs.scheduler", Text(&["rr", "lc", "sh"])),
    ("ipvs.strictARP", Bool),
    ("ipvs.syncPeriod", Duration),
    ("ipvs.tcpFinTimeout", Duration),
    ("ipvs.tcpTimeout", Duration),
    ("ipvs.udpTimeout", Duration),
    ("logging.flushFrequency", Flush),
    ("logging.format", Text(&["text", "json", "xml"])),
    ("logging.options.json.infoBufferSize", Size),
    ("logging.options.json.splitStream", Bool),
    ("logging.options.text.infoBufferSize", Size),
    ("logging.options.text.splitStream", Bool),
    ("logging.verbosity", Whole(&["4"])),
    ("logging.vmodule", Vmodule),
    ("metricsBindAddress", Text(SERVERS)),
    ("mode", Text(&["iptables", "ipvs", "IPVS", "userspace"])),
    ("nftables.masqueradeAll", Bool),
    ("nftables.masqueradeBit", Whole(&["14"])),
    ("nftables.minSyncPeriod", Duration),
    ("nftables.syncPeriod", Duration),
    (
        "nodePortAddresses",
        List(&["10.0.0.0/8", "primary", "localhost", "all", "\"::/0\""]),
    ),
    ("oomScoreAdj", Whole(&["-999", "1001"])),
    ("portRange", Text(&["30000-32767"])),
    ("showHiddenMetricsForVersion", Text(&["\"1.36\"", "1.36"])),
    ("windowsRunAsService", Bool),
    ("winkernel.enableDSR", Bool),
    ("winkernel.forwardHealthCheckVip", Bool),
    ("winkernel.networkName", Text(&["net"])),
    ("winkernel.rootHnsEndpointName", Text(&["hns"])),
    ("winkernel.sourceVip", Text(&["192.0.2.9"])),
];

/// What any field may be given by mistake.
const WRONG: &[&str] = &[
    "[]",
    "{}",
    "[a]",
    "{a: b}",
    "\"\"",
    "abc",
    "5",
    "true",
    "1.5",
    "\"5\"",
    "\"true\"",
    "{{ .x }}",
    "!!str 5",
    "!!int \"5\"",
    "!!bool yes",
    "!custom x",
    "*nothing",
    "|\n    text\n",
    ".inf",
    "-",
    "@x",
    "- a",
    "2001-01-01",
    "0x",
    "1__0",
    "'it''s'",
    "\"\\u0041\"",
    "a: b",
    "a #b",
    "%",
    "`",
];

/// Gone fields, and mistakes.
const UNKNOWN: &[&str] = &[
    "udpIdleTimeout: 250ms",
    "resourceContainer: /kube-proxy",
    "strictARP: true",
    "Mode: ipvs",
    "KIND: other",
    "metrisBindAddress: 127.0.0.1",
    "x-anchor: &anchor {scheduler: lc, strictARP: true}",
    "unknown: null",
    "unknown: {deep: [1, {er: 2}]}",
    "5: number",
    "yes: word",
    "\"\": empty",
    "1.5: float",
    "0x10: hexadecimal",
];

/// Those that matter here, groups, and names that are none.
const GATES: &[&str] = &[
    "KubeProxyIPVS",
    "AllowServiceExternalIPs",
    "LoggingAlphaOptions",
    "LoggingBetaOptions",
    "AllAlpha",
    "AllBeta",
    "SupportIPVSProxyMode",
    "Bogus",
];

/// A feature gate, of those that matter or of all that there are.
pub(crate) fn gate(dice: &mut Dice) -> &'static str {
    if dice.chance(60) {
        return dice.pick(GATES);
    }
    dice.pick(&all_gates())
}

/// Those of all components.
pub(crate) fn all_gates() -> Vec<&'static str> {
    let lines = include_str!("../../src/config/gates.txt").lines();
    let names = lines.filter(|line| !line.starts_with('#'));
    names.filter_map(|line| line.split(' ').next()).collect()
}

/// The text of a file.
pub(crate) fn file(dice: &mut Dice) -> String {
    let mut lines = vec![
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1".to_owned(),
        "kind: KubeProxyConfiguration".to_owned(),
    ];
    let mut sections: Vec<(String, Vec<String>)> = Vec::new();
    for (path, kind) in FIELDS {
        if !dice.chance(8) {
            continue;
        }
        let value = value(dice, *kind);
        put(&mut lines, &mut sections, path, &value);
    }
    for (name, fields) in sections {
        lines.push(section(dice, &name, &fields));
    }
    mutate(dice, &mut lines);
    let mut text = lines.join("\n") + "\n";
    if dice.chance(4)
        && let Ok(value) = serde_saphyr::from_str::<serde_json::Value>(&text)
    {
        text = format!("{value:#}");
        if dice.chance(20) {
            text = text.replacen(
                '{',
                "{\"mode\": \"ipvs\", \"ipvs\": {\"scheduler\": \"lc\"}, ",
                1,
            );
        }
    }
    if dice.chance(4) {
        // One character is lost, or there twice.
        let mut letters: Vec<char> = text.chars().collect();
        let at = dice.below(letters.len());
        if dice.chance(50) {
            letters.remove(at);
        } else {
            letters.insert(
                at,
                dice.pick(&[' ', ':', '-', '"', '\'', '\n', '\t', '{', '[', '#', ',']),
            );
        }
        text = letters.into_iter().collect();
    }
    match dice.below(40) {
        0 => text.replace('\n', "\r\n"),
        1 => format!("\u{feff}{text}"),
        2 => format!("# a comment\n\n---\n{text}"),
        3 => format!("{text}---\n"),
        4 => format!(
            "{text}---\nkind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n"
        ),
        5 => format!("{text}---\nbroken: [\n"),
        6 => format!("{text}...\n# the end\n"),
        7 => format!("---\n---\n{text}"),
        8 => format!("%YAML 1.1\n---\n{text}"),
        9 => text.trim_end().to_owned(),
        _ => text,
    }
}

/// Adds a field where its section is.
fn put(
    lines: &mut Vec<String>,
    sections: &mut Vec<(String, Vec<String>)>,
    path: &str,
    value: &str,
) {
    let Some((name, rest)) = path.split_once('.') else {
        lines.push(format!("{path}: {value}"));
        return;
    };
    // What is deeper is written in one line.
    let field = rest.split('.').collect::<Vec<_>>();
    let (last, outer) = field.split_last().expect("a path has a name");
    let mut text = format!("{last}: {value}");
    for name in outer.iter().rev() {
        text = format!("{name}: {{{text}}}");
    }
    match sections.iter_mut().find(|(known, _)| known == name) {
        Some((_, fields)) => fields.push(text),
        None => sections.push((name.to_owned(), vec![text])),
    }
}

fn section(dice: &mut Dice, name: &str, fields: &[String]) -> String {
    match dice.below(12) {
        0 if !fields.iter().any(|field| field.contains('\n')) => {
            format!("{name}: {{{}}}", fields.join(", "))
        }
        1 => format!("{name}:\n    {}", fields.join("\n    ")),
        2 => format!("\"{name}\":\n  {}", fields.join("\n  ")),
        _ => format!("{name}:\n  {}", fields.join("\n  ")),
    }
}

fn mutate(dice: &mut Dice, lines: &mut Vec<String>) {
    for _ in 0..dice.below(3) {
        let at = dice.below(lines.len());
        match dice.below(14) {
            0..=3 => lines.push(dice.pick(UNKNOWN).to_owned()),
            4 | 5 => lines.push(lines[at].clone()),
            6 => lines[at] = format!("{}  # a comment", lines[at]),
            7 => lines.push(format!(
                "ipvs: {}",
                dice.pick(&["null", "{scheduler: lc}", "[]", "{}", ""])
            )),
            8 => {
                lines.push("x-base: &base {scheduler: sh, strictARP: true}".to_owned());
                let merged = [
                    "{<<: *base}",
                    "{<<: *base, scheduler: rr}",
                    "{<<: [*base]}",
                    "{<<: 5}",
                    "*base",
                ];
                lines.push(format!("ipvs: {}", dice.pick(&merged)));
            }
            12 => {
                let tabbed = [
                    lines[at].replacen(": ", ":\t", 1),
                    format!("{}\t", lines[at]),
                    format!("{}\t# a comment", lines[at]),
                    lines[at].replacen("\n  ", "\n\t", 1),
                ];
                lines[at] = tabbed[dice.below(tabbed.len())].clone();
            }
            13 => {
                lines[at] = lines[at].replacen(": ", ": &value ", 1);
                let (path, _) = dice.pick(FIELDS);
                let again = path.split('.').rev();
                let again = again.fold("*value".to_owned(), |inner, name| {
                    if inner.starts_with('*') {
                        format!("{name}: {inner}")
                    } else {
                        format!("{name}: {{{inner}}}")
                    }
                });
                lines.push(again);
            }
            9 => {
                let (one, other) = (dice.below(lines.len()), dice.below(lines.len()));
                lines.swap(one, other);
            }
            10 if dice.chance(20) => {
                lines.remove(at);
            }
            11 if dice.chance(50) => {
                let kinds = [
                    "kind: Other",
                    "Kind: KubeProxyConfiguration",
                    "apiVersion: v1",
                    "kind: null",
                    "kind: 5",
                ];
                lines.push(dice.pick(&kinds).to_owned());
            }
            _ => {}
        }
    }
}

#[expect(clippy::too_many_lines, reason = "a table of forms")]
fn value(dice: &mut Dice, kind: Kind) -> String {
    if dice.chance(2) {
        return dice.pick(WRONG).to_owned();
    }
    let own = |dice: &mut Dice, own: &[&'static str], forms: &[&'static str]| {
        let from = if dice.chance(60) && !own.is_empty() {
            own
        } else {
            forms
        };
        dice.pick(from).to_owned()
    };
    match kind {
        Bool => dice
            .pick(&[
                "true", "false", "yes", "no", "on", "Off", "True", "FALSE", "y", "N", "null", "~",
                "",
            ])
            .to_owned(),
        Whole(values) => own(
            dice,
            values,
            &[
                "0",
                "5",
                "-1",
                "0014",
                "010",
                "08",
                "0x10",
                "0b11",
                "0o17",
                "1_0",
                "10.0",
                "1e1",
                "+7",
                "null",
                "~",
                "",
                "2147483647",
                "2147483648",
                "1.5",
                "5.",
                "-0",
                "00",
                "0_7",
            ],
        ),
        Number => dice
            .pick(&[
                "5", "2.5", "1e1", ".5", "0x10", "1e40", "null", "-1", "0", "1_0.5", "0.1", "1e-7",
                "16777217",
            ])
            .to_owned(),
        Text(values) => own(
            dice,
            values,
            &[
                "\"\"",
                "''",
                "null",
                "~",
                "",
                "abc",
                "\"12345\"",
                "'yes'",
                "a-b_c.d",
                "\"a\\tb\"",
                ">-\n    a\n    b",
                "|-\n    abc",
                "!!str 5",
                "2001-01-01",
                "1:30",
                "0x",
                "a b",
                "\"on\"",
            ],
        ),
        Duration => dice
            .pick(&[
                "30s",
                "0s",
                "1h30m",
                "1.5h",
                "100ms",
                "1m0.5s",
                "\"15m\"",
                "24h0m0s",
                "\"0\"",
                ".5s",
                "+5s",
                "5s",
                "2s",
                "1ns",
                "1us",
                "10m",
                "-1s",
                "0.000000001s",
                "2562047h",
                "9999999h",
            ])
            .to_owned(),
        Flush => dice
            .pick(&[
                "5s",
                "0",
                "5000000000",
                "\"0s\"",
                "null",
                "1m",
                "-1",
                "0x10",
                "1e9",
                "~",
                "1.5",
            ])
            .to_owned(),
        List(values) => {
            let items: Vec<&str> = (0..dice.below(4)).map(|_| dice.pick(values)).collect();
            match dice.below(8) {
                0 => dice.pick(&["null", "~", "", "[null]", "[\"\"]"]).to_owned(),
                1 if !items.is_empty() => format!("\n    - {}", items.join("\n    - ")),
                2 => format!("[{},]", items.join(",")),
                _ => format!("[{}]", items.join(", ")),
            }
        }
        Gates => {
            let pairs: Vec<String> = (0..dice.below(3))
                .map(|_| {
                    let value = dice.pick(&["true", "false", "yes", "null", "True"]);
                    format!("{}: {value}", gate(dice))
                })
                .collect();
            format!("{{{}}}", pairs.join(", "))
        }
        Size => dice
            .pick(&[
                "0",
                "\"0\"",
                "512",
                "4Ki",
                "1k",
                "1500m",
                "1.5Gi",
                "null",
                "0Ki",
                "1e3",
                "-1",
                "abc",
                "\" 1Ki \"",
            ])
            .to_owned(),
        Vmodule => dice
            .pick(&[
                "[]",
                "null",
                "[{filePattern: a, verbosity: 4}]",
                "[{filePattern: \"a=b\", verbosity: 1}]",
                "[{verbosity: 1}]",
                "[{}]",
                "[null]",
                "[{filePattern: a, verbosity: 3000000000}]",
                "[{filePattern: a, level: 2}]",
            ])
            .to_owned(),
    }
}
