#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# nftables 1.0.6 (Debian 12) on Linux 6.18: one small rule costs the kernel a walk through the whole table, once for
# each way to a rule. Before the commit of a batch with any rule that jumps, returns, translates or uses an extension of
# iptables, nf_tables_validate goes from each base chain of the table through all jumps and looks at every rule it
# meets, again for each base chain and each jump that leads there, although the new rule may be in a chain that nobody
# jumps to. Rules that no base chain leads to cost nothing, and neither does a batch whose rules only match and count.
# So iptables-nft takes longer for each change as a table grows, however little of the table it reads (`perf`: 97 % of
# its time beside 146,000 rules); a table is filled faster before the jump to it exists; and a second base chain that
# jumps there doubles the time of every later change.
#
# Seen: how long one rule takes beside 240,000 that no base chain leads to, when one leads to them, and when two do, as
# ratios that are at least 3 and 1.5, and at most a third for a rule that only counts.
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
# middle STATEMENT: the middle of nine times, in microseconds, that one rule takes.
middle() {
    for _ in {1..9}; do
        nft flush chain t aside
        echo "add rule t aside $1" >one
        local begin=${EPOCHREALTIME/./}
        nft -f one
        echo $((${EPOCHREALTIME/./} - begin))
    done | sort -n | sed -n 5p
}
jumps() { for ((c = 0; c < 60; c++)); do echo "add rule t $1 jump many$c"; done | nft -f -; }
{
    echo 'add table t'
    echo 'add chain t aside'
    for ((c = 0; c < 60; c++)); do
        echo "add chain t many$c"
        for ((r = 0; r < 4000; r++)); do echo "add rule t many$c counter"; done
    done
    for hook in input output; do echo "add chain t $hook { type filter hook $hook priority 0; }"; done
} | nft -f -
nobody=$(middle return)
jumps input
one=$(middle return)
jumps output
two=$(middle return)
counts=$(middle counter)
echo "three times as long when a base chain leads there: $((one >= 3 * nobody))"
echo "half as long again when another does: $((2 * two >= 3 * one))"
echo "a rule that only counts takes a third: $((3 * counts <= two))"
echo "$nobody, $one, $two us; $counts us for a counter" >&2
END
seen=$(unshare -n bash -eu trial)
expected='three times as long when a base chain leads there: 1
half as long again when another does: 1
a rule that only counts takes a third: 1'
echo "$seen"
[[ $seen == "${1:-$expected}" ]] || { echo "changed: it was $expected" >&2 && exit 1; }
