#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Checks that `model` and `plan` are pure: synchronous, deterministic, without IO, and without knowledge
# of the layers around them. Comments, strings and test modules are not looked at.
#
#   hack/layers.sh              check src/model* and src/plan*
#   hack/layers.sh --self-test  prove that each kind of violation is found and that innocent code is not
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

# check FILE...: prints `file:line: name: reason` for each violation and fails if there are any.
# A file's place in the module tree is taken from its path after `src/`.
check() {
    perl - "$@" <<'END'
use strict;
use warnings;

# Where the purity ends. A path is forbidden when it starts with one of these.
my @layers = qw(app config source dataplane reconcile health metrics events telemetry clock);
my %prefixes = (
    (map { ($_ => 'is IO or a runtime') }
        qw(tokio futures axum notify libc nix rtnetlink iptables prometheus std::process std::fs std::io
           std::os std::thread std::env std::sync::mpsc std::net::TcpStream std::net::TcpListener
           std::net::UdpSocket)),
    (map { ($_ => 'is a Kubernetes client type: source/convert turns those into model types') }
        qw(kube k8s_openapi)),
    (map { ($_ => 'is a source of randomness') } qw(rand getrandom fastrand uuid)),
    (map { ($_ => 'is a clock: the time is an argument') } qw(std::time::Instant std::time::SystemTime)),
    (map { ("crate::$_" => 'is another layer') } @layers),
);
# Names that are forbidden wherever they stand.
my %names = (
    (map { ($_ => 'has no stable order: use BTreeMap, BTreeSet or a sorted Vec') } qw(HashMap HashSet)),
    (map { ($_ => 'is a clock: the time is an argument') } qw(Instant SystemTime)),
    (map { ($_ => 'is a socket') } qw(TcpStream TcpListener UdpSocket)),
    (map { ($_ => 'is not synchronous') } qw(async await)),
);

my $failed = 0;
for my $file (@ARGV) {
    next if $file =~ m{(^|/)test(?:s|ing)(\.rs$|/)};
    open my $in, '<', $file or die "$file: $!\n";
    my $code = do { local $/; <$in> };
    # Blank out what is not code, keeping the line numbers.
    $code =~ s{
        ( //[^\n]* | /\*.*?\*/ | \bb?r(\#*)".*?"\g2 | "(?:\\.|[^"\\])*" | '(?:\\[^']+|[^\\'])' )
    }{ (my $gap = $1) =~ s/[^\n]//g; $gap eq '' ? ' ' : $gap }gsex;
    $code =~ s{
        \#\[cfg\(test\)\]\s*(?:\#\[[^\]]*\]\s*)*(?:pub\S*\s+)?mod\s+\w+\s*(\{(?:[^{}]++|(?1))*+\})
    }{ (my $gap = $&) =~ s/[^\n]//g; $gap }gsex;

    # How many `super` lead to the crate's root from here.
    (my $module = $file) =~ s{^.*\bsrc/}{};
    my $depth = ($module =~ tr{/}{}) + 1;
    my %seen;
    my $report = sub {
        my ($offset, $name, $reason) = @_;
        my $line = 1 + (substr($code, 0, $offset) =~ tr/\n//);
        print "$file:$line: `$name` $reason\n" unless $seen{"$line $reason"}++;
        $failed = 1;
    };
    my $check_path = sub {
        my ($offset, $path) = @_;
        $path =~ s/^:://;
        $path =~ s/^kube_proxy_rs(?=::)/crate/;
        $path =~ s/^(?:self::)?(?:super::){$depth}/crate::/;
        $path =~ s/^(?:core|alloc)::/std::/;
        $report->($offset, $path, 'is a netlink type') if $path =~ /^(?:netlink\w*)(?:::|$)/;
        $report->($offset, $path, 'is a clock: the time is an argument') if $path =~ /::now$/;
        $report->($offset, $path, 'hides what is used') if $path =~ /^(?:std|crate)(?:::(?:net|time))?::\*$/;
        for my $prefix (sort keys %prefixes) {
            $report->($offset, $path, $prefixes{$prefix}) if $path =~ /^\Q$prefix\E(?:::|$)/;
        }
    };
    # `use a::{b, c::{d, e as f}}` stands for several paths.
    my $expand;
    $expand = sub {
        my ($prefix, $tree) = @_;
        my ($depth_now, $item, @items) = (0, '');
        for my $char (split //, $tree) {
            $depth_now++ if $char eq '{';
            $depth_now-- if $char eq '}';
            if ($char eq ',' && $depth_now == 0) { push @items, $item; $item = ''; next }
            $item .= $char;
        }
        return map {
            my $one = $_;
            $one =~ /^([^{]*)\{(.*)\}$/s ? $expand->("$prefix$1", $2) : $one eq '' ? () : "$prefix$one";
        } @items, $item;
    };
    my $rest = $code;
    while ($code =~ /\buse\s+([^;]+);/g) {
        my ($offset, $end, $tree) = ($-[0], $+[0], $1);
        substr($rest, $offset, $end - $offset) =~ s/[^\n]/ /g;
        $tree =~ s/\s+as\s+\w+//g;
        $tree =~ s/\s+//g;
        for my $path ($expand->('', $tree)) {
            $check_path->($offset, $path);
            (my $last = $path) =~ s/.*:://;
            $report->($offset, $path, $names{$last}) if $names{$last} && !$prefixes{$path};
        }
    }
    while ($rest =~ /(?<![\w:])((?:::)?\w+(?:\s*::\s*\w+)+)/g) {
        my ($offset, $path) = ($-[0], $1);
        $path =~ s/\s+//g;
        $check_path->($offset, $path);
    }
    while ($rest =~ /\b(\w+)\b/g) {
        $report->($-[0], $1, $names{$1}) if $names{$1};
    }
    while ($rest =~ /\bextern\s+crate\s+(\w+)/g) { $check_path->($-[0], $1) }
}
exit $failed;
END
}

self_test() {
    local failures=0 line
    make_scratch
    mkdir -p "$SCRATCH/src/model" "$SCRATCH/src/plan"
    # must_fail|must_pass FILE CODE
    must_fail() {
        printf '%s\n' "$2" >"$SCRATCH/src/$1"
        if check "$SCRATCH/src/$1" >/dev/null; then
            log "missed in $1: $2"
            failures=$((failures + 1))
        fi
    }
    must_pass() {
        printf '%s\n' "$2" >"$SCRATCH/src/$1"
        if ! check "$SCRATCH/src/$1" >&2; then
            log "wrongly refused in $1: $2"
            failures=$((failures + 1))
        fi
    }
    while read -r line; do must_fail model/x.rs "$line"; done <<'END'
use tokio::sync::mpsc;
use kube::Api;
use k8s_openapi::api::core::v1::Service;
fn f(s: &k8s_openapi::api::core::v1::Service) {}
use netlink_packet_route::link::LinkMessage;
use netlink_sys::Socket;
fn f() { std::process::exit(1) }
use std::{collections::BTreeMap, process::Command};
use std::net::{IpAddr, TcpStream};
fn f(s: std::net::UdpSocket) {}
use std::net::TcpListener;
use std::fs;
let t = std::time::Instant::now();
use std::time::{Duration, SystemTime};
use std::time::*;
let t = jiff::Timestamp::now();
let n: u8 = rand::random();
use std::collections::HashMap;
use std::collections::{BTreeSet, HashSet};
let m = std::collections::HashMap::<u8, u8>::new();
async fn f() {}
use crate::source::Source;
use crate::{model::Service, dataplane::ipvs};
use super::super::dataplane::ipvs;
fn f(m: &crate::metrics::Metrics) {}
use crate::app;
use crate::reconcile::runner;
use crate::health as h;
use kube_proxy_rs::dataplane;
/* a comment */ use std::fs; // and another
let url = "http://x"; use tokio::time;
END
    must_fail model.rs 'use super::dataplane::ipvs;'
    must_fail plan.rs 'pub mod desired; fn f() { crate::dataplane::apply() }'
    while read -r line; do must_pass plan/x.rs "$line"; done <<'END'
// The dataplane applies it with tokio; see crate::dataplane and std::fs.
/// Never a HashMap.
/* use std::fs; */ use std::collections::BTreeMap;
let text = "use std::fs; HashMap"; let quote = '"'; let other = "std::process";
let raw = r#"a "quoted" std::fs"#;
use crate::model::{net::IpFamily, service_port::ServicePort};
use super::dataplane;
use std::net::{IpAddr, SocketAddr}; use std::time::Duration;
fn lifetime<'a>(x: &'a str) -> &'a str { x } fn y<'b>() {}
let source = port.source; let metrics = 1; let kube_ipvs0 = "kube-ipvs0";
END
    must_pass plan/x.rs 'fn f() {}
#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    fn g() { if true { let _ = std::fs::read("x"); } }
}'
    must_fail plan/x.rs '#[cfg(test)]
mod tests { fn g() {} }
use std::fs;'
    must_pass plan/tests.rs 'use std::collections::HashMap;'
    ((failures == 0)) || die "self-test: $failures failures"
    log "self-test: every violation is found"
}

case ${1:-} in
    --self-test) self_test ;;
    '')
        cd "$REPO"
        mapfile -t files < <(find src/model src/plan src/model.rs src/plan.rs -name '*.rs' 2>/dev/null | sort)
        ((${#files[@]})) || die "no files to check under src/model and src/plan"
        check "${files[@]}" || die "model and plan must stay pure (ARCHITECTURE.md, layers)"
        ;;
    *) die "usage: hack/layers.sh [--self-test]" ;;
esac
