#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# ipset 7.17 (Debian 12) on Linux 6.18: an `ipset list` whose output nobody reads (a pager, a slow terminal, `ssh`)
# holds the set in whose middle it stopped, for as long as it waits: `swap` and `destroy` of it are refused with
# EBUSY, which `ipset` explains with "in use by a kernel component" although no rule names it and its "References" are
# 0. Entries can be added meanwhile, and the other sets swapped and destroyed. The kernel counts dumps apart
# (ref_netlink) and shows nobody that counter, so whoever replaces sets by swapping has to try again later.
#
# Seen: what succeeds while a list of 20,000 entries waits for its reader, and after it.
# Needs root and apt-get (Debian 12): packages are unpacked into a temporary folder, sets are in a network namespace.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
cd "$folder"
apt-get -qq -o APT::Sandbox::User=root download ipset=7.17-1 libipset13=7.17-1 libmnl0=1.0.4-3
for package in ./*.deb; do dpkg-deb -x "$package" root; done
library=$(dirname "$(find "$folder/root" -name 'libipset.so.13' | head -1)")
export LD_LIBRARY_PATH=$library PATH=$folder/root/usr/sbin:$folder/root/sbin:$PATH
cat >trial <<'END'
{
    for name in first large last spare; do echo "create $name hash:ip timeout 0"; done
    for n in {0..19999}; do echo "add large 10.0.$((n / 256)).$((n % 256))"; done
} | ipset restore
try() { "$@" 2>refused && echo "$*: done" || sed -E "s/.*: (.*)/$*: \1/" refused; }
exec 3< <(exec ipset list)
until grep -q pipe_write "/proc/$!/wchan"; do sleep 0.1; done
try ipset swap large spare
try ipset destroy large
try ipset swap first last
try ipset destroy first
try ipset add large 10.1.0.1
try ipset test large 10.1.0.1
cat <&3 >listed
grep -A8 'Name: large' listed | grep References
try ipset swap large spare
try ipset destroy spare
END
seen=$(unshare -n bash -eu trial)
expected='ipset swap large spare: Device or resource busy
ipset destroy large: it is in use by a kernel component
ipset swap first last: done
ipset destroy first: done
ipset add large 10.1.0.1: done
ipset test large 10.1.0.1: done
References: 0
ipset swap large spare: done
ipset destroy spare: done'
echo "$seen"
[[ $seen == "${1:-$expected}" ]] || { echo "changed: it was $expected" >&2 && exit 1; }
