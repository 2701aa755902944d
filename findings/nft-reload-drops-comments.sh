#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# nftables 1.0.6 and iptables 1.8.9 (Debian 12): a rule that iptables-nft wrote with a comment is listed without it, and
# the listing loads without an error. So `nft list ruleset > F; nft flush ruleset; nft -f F`, which is how a host's
# nftables service keeps rules over a restart, takes away the comments by which programs know their own rules; the
# matches themselves come back.
#
# Seen: `--comment "mine"` before, no comment after, exit code 0.
# Needs root and apt-get (Debian 12): packages are unpacked into a temporary folder, rules are in a network namespace.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
cd "$folder"
apt-get download -qq nftables=1.0.6-2+deb12u2 libnftables1=1.0.6-2+deb12u2 iptables=1.8.9-2 libnftnl11=1.2.4-2 \
    libxtables12=1.8.9-2 libmnl0=1.0.4-3
for package in ./*.deb; do dpkg-deb -x "$package" root; done
library=$(dirname "$(find "$folder/root" -name 'libxtables.so.12' | head -1)")
export LD_LIBRARY_PATH=$library XTABLES_LIBDIR=$library/xtables PATH=$folder/root/usr/sbin:$PATH
seen=$(unshare -n bash -euc '
    iptables-nft -A OUTPUT -p tcp --dport 80 -m comment --comment mine -j ACCEPT
    iptables-nft-save | grep "^-A"
    nft list ruleset >rules 2>/dev/null
    nft flush ruleset
    nft -f rules && echo loaded
    iptables-nft-save | grep "^-A"
')
expected='-A OUTPUT -p tcp -m tcp --dport 80 -m comment --comment mine -j ACCEPT
loaded
-A OUTPUT -p tcp -m tcp --dport 80 -j ACCEPT'
echo "$seen"
[[ $seen == "${1:-$expected}" ]] || { echo "changed: it was $expected" >&2 && exit 1; }
