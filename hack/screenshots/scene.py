#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A node that is worth a picture: Services with endpoints that are all this node, and clients that talk to them."""

import itertools
import json
import pathlib
import random
import socket
import sys
import threading
import time

NAMESPACES = ["auth", "billing", "checkout", "media", "orders", "search", "shop", "shipping"]
NAMES = ["api", "cache", "cart", "catalog", "gateway", "images", "prices", "queue", "sessions", "web"]


def address(base, number):
    return socket.inet_ntoa((base + number).to_bytes(4, "big"))


def objects(count):
    """A list as kubectl prints it. The first Services are those that clients talk to."""
    yield {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker-1"},
           "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.10"}]}}
    for number in range(count):
        namespace = NAMESPACES[number % len(NAMESPACES)]
        name = NAMES[number // len(NAMESPACES) % len(NAMES)]
        if number >= len(NAMESPACES) * len(NAMES):
            name += f"-{number // (len(NAMESPACES) * len(NAMES))}"
        meta = {"name": name, "namespace": namespace}
        spec = {"clusterIP": address(0x0A600100, number), "ports": [{"name": "http", "port": 80}]}
        if number == 3:
            spec |= {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
            spec["ports"][0]["nodePort"] = 30080
        service = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}
        if number == 3:
            service["status"] = {"loadBalancer": {"ingress": [{"ip": "203.0.113.80"}]}}
        if number == 6:
            meta["annotations"] = {"kube-proxy-rs.io/scheduler": "twos"}
        yield service
        here = 3 if number < 80 else 10
        endpoints = [{"addresses": [address(0x0A800001, number * 16 + index)], "nodeName": "worker-1",
                      "conditions": {"ready": True}} for index in range(here if number != 5 else 0)]
        if number == 0:
            endpoints[2]["conditions"] = {"ready": False, "serving": True, "terminating": True}
        yield {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
               "metadata": {"name": f"{name}-x7k2p", "namespace": namespace,
                            "labels": {"kubernetes.io/service-name": name}},
               "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints}


def write(directory, count):
    items = {"apiVersion": "v1", "kind": "List", "items": list(objects(int(count)))}
    part = pathlib.Path(directory, ".part")
    part.write_text(json.dumps(items))
    part.rename(pathlib.Path(directory, "all.json"))


def answer(connection):
    with connection:
        while data := connection.recv(4096):
            connection.sendall(data * 8)


def serve():
    server = socket.create_server(("0.0.0.0", 8080), backlog=512)
    while True:
        threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()


def talk(seconds):
    """Short connections to some Services, and a few that stay open."""
    threading.Thread(target=serve, daemon=True).start()
    time.sleep(0.5)
    end, held, dice = time.monotonic() + float(seconds), [], random.Random(1)
    weights = [40, 25, 10, 6, 4, 0, 3, 2]
    for turn in itertools.count():
        if time.monotonic() > end:
            break
        number = dice.choices(range(len(weights)), weights)[0]
        try:
            client = socket.create_connection((address(0x0A600100, number), 80), timeout=5)
            client.sendall(b"x" * dice.randint(100, 2000))
            client.recv(65536)
        except OSError:
            continue
        if turn % 10 == 0 and len(held) < 60:
            held.append(client)
        else:
            client.close()


if __name__ == "__main__":
    {"write": write, "talk": talk}[sys.argv[1]](*sys.argv[2:])
