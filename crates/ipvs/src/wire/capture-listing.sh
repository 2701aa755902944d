#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Prints what /proc/net/ip_vs shows of services of all kinds, for the tests of dataplane::ipvs::listing. Needs a kernel
# with IPVS whose tables may be flushed, and ipvsadm 1.31:
#
#   hack/guest -- crates/ipvs/src/wire/capture-listing.sh >crates/ipvs/src/wire/listing.txt
set -euo pipefail
modprobe ip_vs
ipvsadm -R <<'END'
-C
-A -t 10.96.0.10:53 -s rr
-a -t 10.96.0.10:53 -r 10.1.0.2:53 -m -w 0
-a -t 10.96.0.10:53 -r 10.1.0.3:53 -m -w 1
-a -t 10.96.0.10:53 -r 10.1.255.254:65535 -m -w 65535
-a -t 10.96.0.10:53 -r [fd00:1::9]:53 -i -w 5
-A -u 10.96.0.10:53 -s wrr --ops
-a -u 10.96.0.10:53 -r 10.1.0.2:53 -g -w 100
-a -u 10.96.0.10:53 -r 10.1.0.3:53 -i -w 7
-A --sctp-service 255.255.255.254:1 -s lc -p 10800 -M 255.255.255.0
-a --sctp-service 255.255.255.254:1 -r 192.0.2.1:3868 -m -w 2147483647
-A -t 10.96.0.11:80 -s rr
-A -t [fd00:96::a]:65535 -s mh -b mh-fallback,mh-port -p 300 -M 64
-a -t [fd00:96::a]:65535 -r [fd00:1::2]:8080 -m -w 3
-a -t [fd00:96::a]:65535 -r [fd00:1::3]:65535 -g -w 4
-A -u [fd00:96::a]:53 -s sh
-A -f 8193 -s rr
-a -f 8193 -r 10.1.0.2:80 -m -w 1
-A -f 8193 -6 -s rr
-a -f 8193 -6 -r [fd00:1::2]:80 -m -w 1
-A -f 4294967295 -s rr
END
cat /proc/thread-self/net/ip_vs
