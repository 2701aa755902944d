#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Linux, nf_conntrack_netlink: a dump with a filter for an IPv6 address (CTA_FILTER with CTA_FILTER_F_CTA_IP_DST or
# _SRC, since 5.8) lists the flows of all OTHER addresses: ctnetlink_filter_match_tuple takes `!ipv6_addr_cmp()`, which
# is true for equal addresses, for a difference. IPv4 compares right. Seen with 6.18.
# We ask the kernel for protocol and port alone where the address is IPv6, and look at the address ourselves.
# Prints what is listed of two flows, to fd00::1 and fd00::2, when fd00::1 is asked for. Needs root, python3, conntrack
# in the kernel.
set -euo pipefail
seen=$(unshare --net bash -c '
    ip link set lo up
    for address in fd00::1 fd00::2; do ip address add $address/128 dev lo nodad; done
    ip6tables-legacy -A OUTPUT -m conntrack --ctstate NEW 2>/dev/null || ip6tables -A OUTPUT -m conntrack --ctstate NEW
    python3 - <<"END"
import socket, struct

for to in ("fd00::1", "fd00::2"):
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"x", (to, 4000))

def attribute(kind, value):
    return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)

NESTED = 0x8000
asked = socket.inet_pton(socket.AF_INET6, "fd00::1")
# CTA_TUPLE_ORIG with CTA_TUPLE_IP (CTA_IP_V6_DST) and CTA_TUPLE_PROTO (CTA_PROTO_NUM); CTA_FILTER
tuple_ = attribute(1 | NESTED, attribute(4, asked)) + attribute(2 | NESTED, attribute(1, b"\x11"))
filter_ = attribute(1, struct.pack("I", 1 << 1 | 1 << 3))
body = struct.pack("BBH", socket.AF_INET6, 0, 0) + attribute(1 | NESTED, tuple_) + attribute(25 | NESTED, filter_)
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
netlink.send(struct.pack("IHHII", 16 + len(body), 0x101, 0x301, 1, 0) + body)
answer = netlink.recv(65536)
listed = [to for to in ("fd00::1", "fd00::2") if socket.inet_pton(socket.AF_INET6, to) in answer]
print("asked for fd00::1, listed:", ", ".join(listed) or "nothing")
END
')
expected='asked for fd00::1, listed: fd00::2'
echo "$seen"
[[ $seen == "$expected" ]] || { echo "changed: it was $expected" >&2 && exit 1; }
