#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Records what nft and the kernel say to each other, for the wire tests. Needs nft 1.0.6, strace and perl:
#
#   unshare --net crates/nft/src/wire/capture-nft.sh >crates/nft/src/wire/nft.txt
#
# Output: a line `# COMMAND` per command, then `> HEX` for each message to the kernel and `< HEX` for each message from
# it, with struct nlmsghdr. Of commands that change something only the transaction is recorded, not what nft reads
# before it; process numbers are zeroed.
set -euo pipefail

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

capture() {
    echo "# nft $*"
    # Failure is an answer, too.
    strace -e trace=sendmsg,sendto,recvmsg -e write=3 -e read=3 -o "$scratch/trace" nft "$*" >/dev/null 2>&1 || true
    perl -- - "$scratch/trace" "${1%% *}" <<'PERL'
use strict;
use warnings;
my ($trace, $verb) = @ARGV;
open my $in, '<', $trace or die;
my ($direction, %bytes, @datagrams) = ('');
while (<$in>) {
    if (/^(send|recv)/) {
        $direction = $1 eq 'send' ? '>' : '<';
        push @datagrams, [$direction, ''];
    } elsif (/^ \| [0-9a-f]+  ((?:[0-9a-f]{2} ?| )+?)  /) {
        $datagrams[-1][1] .= $1 =~ s/ //gr;
    }
}
for (@datagrams) {
    my ($direction, $hex) = @$_;
    my $rest = pack 'H*', $hex;
    while (length $rest >= 16) {
        my ($length, $kind, $flags, $sequence, $port) = unpack 'V v v V V', $rest;
        last if $length < 16;
        my $message = substr $rest, 0, $length;
        substr($rest, 0, ($length + 3) & ~3) = '' if length $rest >= (($length + 3) & ~3);
        $rest = '' if length $rest < 16;
        my ($subsystem, $command) = ($kind >> 8, $kind & 255);
        my $is_question = $subsystem == 10 && $command =~ /^(1|4|7|10|13|16|19|23)$/;
        next if $verb ne 'list' && ($direction eq '<' ? $kind != 2 : $is_question);
        substr($message, 12, 4) = "\0\0\0\0";
        print "$direction ", unpack('H*', $message), "\n";
    }
}
PERL
}

capture add table ip t
capture add chain ip t web
capture 'add chain ip t pre { type nat hook prerouting priority dstnat; policy accept; }'
capture 'add chain ip t out { type filter hook output priority -10; policy drop; }'
capture 'add set ip t plain { type ipv4_addr . inet_proto . inet_service; }'
capture 'add set ip t wide { type ipv6_addr . inet_proto . inet_service . ipv6_addr; flags interval; }'
capture 'add set ip t nets { type ipv4_addr; flags interval; }'
capture 'add set ip t recent { type ipv4_addr; flags timeout, dynamic; timeout 1h; size 1024; }'
capture 'add map ip t marks { type ipv4_addr . inet_proto . inet_service : mark; }'
capture 'add map ip t ports { type inet_service : verdict; }'
capture 'add set ip t pairs { typeof @nh,120,8 . @nh,152,8; size 256; }'
capture 'add element ip t plain { 10.0.0.1 . tcp . 80, 10.0.0.2 . udp . 53 }'
capture 'add element ip t wide { fd00::1 . tcp . 80 . fd01::/64, fd00::1 . sctp . 80 . fd02::7 }'
capture 'add element ip t nets { 10.0.0.0/8, 192.0.2.7, 255.0.0.0/8 }'
capture 'add element ip t recent { 10.0.0.1 timeout 30s comment "a guest" }'
capture 'add element ip t marks { 10.0.0.1 . tcp . 80 : 0x10 }'
capture 'add element ip t pairs { 0x7 . 0x7 }'
capture 'add element ip t ports { 80 : jump web, 81 : drop, 82 : accept, 83 : return, 84 : continue }'
capture 'add rule ip t pre ip daddr . meta l4proto . th dport @plain counter jump web comment "to the web"'
capture 'add rule ip t pre ip daddr . meta l4proto . th dport != @plain return'
capture 'insert rule ip t pre ip saddr 10.0.0.1 iifname "eth0" accept'
capture 'add rule ip t pre iifname "veth*" fib daddr type local drop'
capture 'add rule ip t pre fib saddr type != local return'
capture 'add rule ip t pre ct state established,related accept'
capture 'add rule ip t pre ct state new drop'
capture 'add rule ip t pre meta mark & 0x4000 == 0x4000 accept'
capture 'add rule ip t pre meta mark set meta mark | 0x4000'
capture 'add rule ip t pre meta mark set ip daddr . meta l4proto . th dport map @marks'
capture 'add rule ip t pre th dport vmap @ports'
capture 'add rule ip t pre meta l4proto tcp dnat to 10.1.0.1:8080'
capture 'add rule ip t pre dnat to ip daddr'
capture 'add rule ip t pre ip saddr 10.1.2.0/23 return'
capture 'add rule ip t pre add @recent { ip saddr timeout 60s }'
capture 'add rule ip t out limit rate 10/second burst 5 packets accept'
capture 'add rule ip t out notrack'
capture 'add rule ip t out reject with icmp port-unreachable'
capture 'add rule ip t out reject with tcp reset'
capture 'add rule ip t out goto web'
capture 'add rule ip t out th dport 80-90 accept'
capture 'add chain ip t post { type nat hook postrouting priority srcnat; }'
capture 'add rule ip t post masquerade fully-random'
capture 'add rule ip t post oifname "lo" masquerade'
capture 'add rule ip t post @nh,120,8 . @nh,152,8 @pairs fib daddr type != local masquerade'
capture 'list ruleset'
capture 'list set ip t nets'
capture 'delete element ip t plain { 10.0.0.1 . tcp . 80 }'
capture 'delete element ip t nets { 10.0.0.0/8 }'
capture 'delete element ip t plain { 10.9.9.9 . tcp . 80 }'
capture 'flush set ip t plain'
capture 'delete rule ip t out handle 9999'
capture 'flush chain ip t out'
capture 'flush chain ip t pre'
capture 'delete set ip t nets'
capture 'delete chain ip t out'
capture 'add table ip6 t6'
capture 'add chain ip6 t6 filter'
capture 'add set ip6 t6 services { type ipv6_addr . inet_proto . inet_service; }'
capture 'add rule ip6 t6 filter ip6 daddr . meta l4proto . th dport @services drop'
capture 'add rule ip6 t6 filter reject with icmpv6 port-unreachable'
capture 'add table inet t46'
capture 'add chain inet t46 filter'
capture 'add rule inet t46 filter reject'
capture 'delete table ip6 t6'
capture 'delete table ip t'
