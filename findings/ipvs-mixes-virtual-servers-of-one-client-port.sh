#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Linux 6.1 (Debian's user-mode-linux 6.1um4+b13), ipvsadm 1.31: a client that uses one source port for two virtual
# servers and meets the same real server loses the older connection. Its kernel does choose the same port for both now
# and then, because their addresses differ. IPVS finds the connection of an answer by the addresses and ports of real
# server and client (ip_vs_conn_out_get), where both look alike, and takes the newest: answers of the older connection
# go out with the address of the other virtual server, and the client times out. The server sees two clients, for
# masquerading has given each connection a port of its own, so the real server is not what mixes them up.
#
# Seen: what a client gets on its first connection, on a second one to the other virtual server, and again on the first
# one, from two source ports and from the same.
set -euo pipefail
[[ $(id -u) == 0 ]] || { echo "needs root" >&2 && exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -qq -o APT::Sandbox::User=root download user-mode-linux=6.1um4+b13 ipvsadm=1:1.31-1+b1
for package in ./*.deb; do dpkg -x "$package" root; done
mkdir -p root/lib
ln -s ../usr/lib/uml/modules root/lib/modules
cat >server.py <<'END'
import socket, threading

def serve(client):
    while True:
        question = client.recv(16)
        if not question:
            return
        client.sendall(question)

listener = socket.socket()
listener.bind(("10.2.0.2", 8080))
listener.listen()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
END
cat >client.py <<'END'
import socket, sys

def connect(address, port):
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.settimeout(5)
    client.bind(("10.1.0.2", port))
    client.connect((address, 80))
    return client

def ask(client):
    try:
        client.sendall(b"?")
        return "answer" if client.recv(16) == b"?" else "closed"
    except TimeoutError:
        return "time-out"

first = connect("10.9.0.1", int(sys.argv[1]))
answers = [ask(first)]
second = connect("10.9.0.2", int(sys.argv[2]))
answers += [ask(second), ask(first)]
print(*answers, sep=", ")
END
cat >init <<END
#!/bin/bash
export PATH=$folder/root/sbin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
for module in ip_vs ip_vs_rr nf_nat xt_MASQUERADE iptable_nat veth; do modprobe -d $folder/root \$module; done
ip link set lo up
# host NAME INTERFACE NETWORK: a host on a link of its own.
host() {
    ip netns add \$1
    ip link add \$2 type veth peer name eth0 netns \$1
    ip address add \$3.1/24 dev \$2
    ip link set \$2 up
    ip -n \$1 address add \$3.2/24 dev eth0
    ip -n \$1 link set lo up
    ip -n \$1 link set eth0 up
    ip -n \$1 route add default via \$3.1
}
{
    host client c0 10.1.0
    host web w0 10.2.0
    sysctl -qw net.ipv4.ip_forward=1 net.ipv4.vs.conntrack=1
    iptables-legacy -t nat -A POSTROUTING -o w0 -j MASQUERADE
    for address in 10.9.0.1 10.9.0.2; do
        ip address add \$address/32 dev lo
        ipvsadm -A -t \$address:80 -s rr
        ipvsadm -a -t \$address:80 -r 10.2.0.2:8080 -m
    done
    ip netns exec web python3 $folder/server.py &
    until ip netns exec web python3 -c 'import socket; socket.create_connection(("10.2.0.2", 8080))'; do :; done
    echo "two ports: \$(ip netns exec client python3 $folder/client.py 20000 20001)"
    echo "the same port: \$(ip netns exec client python3 $folder/client.py 20002 20002)"
} >$folder/seen 2>$folder/errors
echo o >/proc/sysrq-trigger
sleep 60
END
chmod 700 init
TMPDIR=$folder timeout 300 root/usr/bin/linux.uml root=/dev/root rootfstype=hostfs rootflags=/ rw mem=512M \
    con=null con0=null,fd:1 ssl=null quiet umid=finding "uml_dir=$folder" "init=$folder/init" >console 2>&1 </dev/null || true
seen=$(cat seen)
sort -u errors | grep -v -e ConnectionRefused -e Traceback -e 'File "' -e '^ ' >&2 || true
expected='two ports: answer, answer, answer
the same port: answer, answer, time-out'
echo "$seen"
[[ $seen == "${1:-$expected}" ]] || { echo "changed: it was $expected" >&2 && exit 1; }
