#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Records what ipvsadm and the kernel say to each other, for the wire tests of dataplane::ipvs.
# Needs a kernel with IPVS whose tables may be flushed, ipvsadm 1.31 and strace:
#
#   hack/guest -- crates/ipvs/src/wire/capture-ipvs.sh >crates/ipvs/src/wire/ipvs.txt
#
# Output: a line `# COMMAND` per command, then `> FLAGS HEX` for each request and `< HEX` for each
# message of the answers, both without struct nlmsghdr. The query for the version, with which each
# command begins, is recorded only once.
set -euo pipefail

# strace asks the kernel for the family's name, so it must be there.
modprobe ip_vs
ipvsadm -C
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
version_seen=no

capture() {
    echo "# ipvsadm $*"
    # Failure is an answer, too: a persistence engine may be missing.
    strace -e trace=sendmsg,recvmsg -xx -s 65536 -o "$scratch/trace" \
        ipvsadm "$@" >/dev/null 2>&1 || true
    local line data
    while read -r line; do
        [[ $line == *nlmsg_type=IPVS,* && $line != *MSG_PEEK* ]] || continue
        while read -r data; do
            data=${data//[\"x\\]/}
            case $data in
                0f01* | 0e01*) [[ $version_seen == no ]] || continue ;;
            esac
            if [[ $line == sendmsg* ]]; then
                [[ $line =~ nlmsg_flags=([A-Z_0-9a-fx|]+) ]]
                echo "> ${BASH_REMATCH[1]} $data"
            else
                echo "< $data"
            fi
        done < <(grep -oE '"(\\x[0-9a-f]{2})+"' <<<"$line")
    done <"$scratch/trace"
    version_seen=yes
}

capture -A -t 10.0.0.1:80 -s rr
capture -A -u 10.0.0.1:53 -s wlc
capture -A --sctp-service 10.0.0.1:9999 -s lc
capture -A -t '[fd00::1]:443' -s rr
capture -A -f 7 -s rr
capture -A -f 7 -6 -s wrr
capture -A -t 10.0.0.2:80 -s rr -p 300 -M 255.255.255.0
capture -A -t '[fd00::2]:80' -s rr -p 10800 -M 64
capture -A -t 10.0.0.3:80 -s mh -b mh-port,mh-fallback
capture -A -t 10.0.0.4:80 -s sh -b sh-port
capture -A -u 10.0.0.5:53 -s rr -o
capture -A -u 10.0.0.6:5060 -s rr -p 60 --pe sip
capture -E -t 10.0.0.1:80 -s wrr -p 600
capture -a -t 10.0.0.1:80 -r 10.1.0.1:8080 -m
capture -a -t 10.0.0.1:80 -r 10.1.0.2:8080 -m -w 3 -x 100 -y 50
capture -a -t '[fd00::1]:443' -r '[fd00:1::1]:8443' -m
capture -a -f 7 -r 10.1.0.1 -g
capture -a -t 10.0.0.1:80 -r 10.1.0.3:80 -i
capture -a -t 10.0.0.1:80 -r 10.1.0.4:80 -i --tun-type gue --tun-port 5555 --tun-remcsum
capture -a -t 10.0.0.1:80 -r '[fd00:1::9]:80' -i -w 2
capture -e -t 10.0.0.1:80 -r 10.1.0.1:8080 -m -w 0
capture -Ln
capture -d -t 10.0.0.1:80 -r 10.1.0.1:8080
capture --set 900 120 300
capture -Ln --timeout
capture -Z -t 10.0.0.1:80
capture -Z
capture -D -t 10.0.0.1:80
capture -D -t '[fd00::1]:443'
capture -D -f 7
capture -C
ip link add d0 type dummy
ip link set d0 up
ip address add 10.9.0.1/24 dev d0
capture --start-daemon master --mcast-interface d0 --syncid 7
capture --start-daemon backup --mcast-interface d0 --syncid 7 --sync-maxlen 1400 --mcast-group 224.0.0.99 \
    --mcast-port 9000 --mcast-ttl 3
capture -L --daemon
capture --stop-daemon master
capture --stop-daemon backup
capture --start-daemon master --mcast-interface d0 --mcast-group ff02::99
