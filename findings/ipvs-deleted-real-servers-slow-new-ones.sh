#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Linux 6.1 (Debian's user-mode-linux 6.1um4+b13), ipvsadm 1.31: real servers that were deleted slow down every one
# that is added afterwards, of any virtual server. The kernel keeps deleted real servers for about two minutes in one
# list that nothing shows (ip_vs_dest_trash), and walks through it for each new one, in case it comes back
# (ip_vs_trash_get_dest). So who replaces the endpoints of large Services waits for the square of their number, and so
# does everybody else. After 40,000 deletions additions took seven times as long as before.
#
# Seen: the number of real servers listed, and whether adding 2,000 of them takes at least three times as long after
# 40,000 others were added and deleted as before.
set -euo pipefail
[[ $(id -u) == 0 ]] || { echo "needs root" >&2 && exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -qq -o APT::Sandbox::User=root download user-mode-linux=6.1um4+b13 ipvsadm=1:1.31-1+b1
for package in ./*.deb; do dpkg -x "$package" root; done
mkdir -p root/lib
ln -s ../usr/lib/uml/modules root/lib/modules
cat >init <<END
#!/bin/bash
export PATH=$folder/root/sbin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in ipv6 ip_vs ip_vs_rr; do modprobe -d $folder/root \$module; done
# Without any address of its own the kernel takes every other one for a broadcast address.
ip link set lo up
# service NUMBER REAL: a virtual server with so many real servers, as ipvsadm restores it.
service() {
    echo "-A -t 10.0.0.\$1:80 -s rr"
    for ((n = 0; n < \$2; n++)); do echo "-a -t 10.0.0.\$1:80 -r 172.\$1.\$((n / 250)).\$((n % 250 + 1)):80 -m -w 1"; done
}
milliseconds() {
    local begin=\${EPOCHREALTIME/./}
    ipvsadm -R
    echo \$(((\${EPOCHREALTIME/./} - begin) / 1000))
}
{
    before=\$(service 101 2000 | milliseconds)
    for ((s = 1; s <= 20; s++)); do service \$s 2000; done | ipvsadm -R
    for ((s = 1; s <= 20; s++)); do ipvsadm -D -t 10.0.0.\$s:80; done
    after=\$(service 102 2000 | milliseconds)
    echo "real servers: \$(ipvsadm -Ln | grep -c '^  -> 172')"
    echo "three times as long: \$((after >= 3 * before))"
    echo "\$before ms before, \$after ms after" >&2
} >$folder/seen 2>$folder/errors
echo o >/proc/sysrq-trigger
sleep 60
END
chmod 700 init
TMPDIR=$folder timeout 300 root/usr/bin/linux.uml root=/dev/root rootfstype=hostfs rootflags=/ rw mem=512M \
    con=null con0=null,fd:1 ssl=null quiet umid=finding "uml_dir=$folder" "init=$folder/init" >console 2>&1 </dev/null || true
seen=$(cat seen)
sort -u errors >&2
expected='real servers: 4000
three times as long: 1'
echo "$seen"
[[ $seen == "${1:-$expected}" ]] || { echo "changed: it was $expected" >&2 && exit 1; }
