#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# nftables 1.0.6 (Debian 12) on Linux 6.18: a connection whose destination is translated to the address that it has
# already counts as translated for other nat chains and not for `ct status dnat`. The kernel sets the bit only if the
# tuple changes (nf_nat_setup_info), but marks the direction as done either way. So such a rule keeps every later
# `dnat` and `redirect` away from a connection, and a firewall that lets pass what was translated (firewalld: `ct status
# dnat accept`) still refuses it; with real translations the two always go together.
#
# Seen: packets to a port that is translated to itself, to one that is not translated first, and to one translated to
# another address, counted where a second nat chain redirects them and where they have the status `dnat`.
# Needs root and apt-get (Debian 12): packages are unpacked into a temporary folder, rules are in a network namespace.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
cd "$folder"
apt-get -qq -o APT::Sandbox::User=root download nftables=1.0.6-2+deb12u2 libnftables1=1.0.6-2+deb12u2 libnftnl11=1.2.4-2 libmnl0=1.0.4-3
for package in ./*.deb; do dpkg-deb -x "$package" root; done
library=$(dirname "$(find "$folder/root" -name 'libnftables.so.1' | head -1)")
export LD_LIBRARY_PATH=$library PATH=$folder/root/usr/sbin:$PATH
cat >trial <<'END'
ip link set lo up
nft -f - <<'RULES'
table ip t {
    chain first {
        type nat hook output priority -101
        udp dport 7001 dnat to ip daddr
        udp dport 7003 dnat to 127.0.0.2
    }
    chain second {
        type nat hook output priority -100
        udp dport { 7001, 7002, 7003 } redirect to :9
    }
    chain seen {
        type filter hook input priority 0
        ip daddr 127.0.0.1 udp dport 7001 ct status dnat counter comment "to itself, has the status"
        ip daddr 127.0.0.1 udp dport 7001 counter comment "to itself, keeps its port"
        ip daddr 127.0.0.1 udp dport 9 ct status dnat counter comment "redirected, has the status"
        ip daddr 127.0.0.2 udp dport 7003 ct status dnat counter comment "to another address, has the status"
    }
}
RULES
for port in 7001 7002 7003; do echo x >/dev/udp/127.0.0.1/$port; done
nft list chain ip t seen | sed -nE 's/.*packets ([0-9]+) .*comment "(.*)".*/\2: \1/p'
END
seen=$(unshare -n bash -eu trial)
expected='to itself, has the status: 0
to itself, keeps its port: 1
redirected, has the status: 1
to another address, has the status: 1'
echo "$seen"
[[ $seen == "${1:-$expected}" ]] || { echo "changed: it was $expected" >&2 && exit 1; }
