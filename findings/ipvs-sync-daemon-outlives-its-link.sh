#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Linux 6.1 (Debian's user-mode-linux 6.1um4+b13), ipvsadm 1.31: a connection sync daemon stays when the link that it
# was started on is deleted. The kernel goes on to list it with the link's name, and when a link of that name is made
# again, the daemon looks as if it were on it: but the new link is no member of the daemon's multicast group, so that
# the backup hears nothing any more, and a second start is refused because one runs. Only stop and start helps. So who
# watches over these daemons has to remember the index of the link, which the kernel does not tell.
#
# Seen: the link's membership of 224.0.0.81 before, the list after the link was deleted and made anew, the membership
# then, the exit code of a second start, and the membership after stop and start.
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
for module in ipv6 dummy ip_vs; do modprobe -d $folder/root \$module; done
make() { ip link add d0 type dummy && ip address add 192.0.2.1/24 dev d0 && ip link set d0 up && ip route add 224.0.0.0/4 dev d0; }
member() { ip -o maddress show dev d0 | grep -c ' 224.0.0.81'; }
{
    make
    ipvsadm --start-daemon backup --mcast-interface d0
    echo "member: \$(member)"
    ip link delete d0
    make
    ipvsadm --list --daemon
    echo "member: \$(member)"
    ipvsadm --start-daemon backup --mcast-interface d0
    echo "started again: \$?"
    ipvsadm --stop-daemon backup
    ipvsadm --start-daemon backup --mcast-interface d0
    echo "member: \$(member)"
} >$folder/seen 2>$folder/errors
echo o >/proc/sysrq-trigger
sleep 60
END
chmod 700 init
TMPDIR=$folder timeout 120 root/usr/bin/linux.uml root=/dev/root rootfstype=hostfs rootflags=/ rw mem=256M \
    con=null con0=null,fd:1 ssl=null quiet umid=finding "uml_dir=$folder" "init=$folder/init" >console 2>&1 </dev/null || true
seen=$(cat seen)
expected='member: 1
backup sync daemon (mcast=d0, syncid=0, maxlen=1472, group=224.0.0.81, port=8848, ttl=1)
member: 0
started again: 255
member: 1'
echo "$seen"
[[ $seen == "${1:-$expected}" ]] || { echo "changed: it was $expected" >&2 && exit 1; }
