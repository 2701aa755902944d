#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""browser.py OUT ADDRESS NAME: opens a page in headless Chromium, takes pictures of it light and dark, and checks what
the page promises: first paint within a second, a refresh that does not jump, tables without JavaScript."""

import base64
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

CHROMIUM = os.environ.get("CHROMIUM", "chromium")


class Tab:
    """A page, by the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/) over a WebSocket."""

    def __init__(self, port):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
        self.path = json.load(urllib.request.urlopen(request))["webSocketDebuggerUrl"].split(str(port), 1)[1]
        self.socket = socket.create_connection(("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
                             f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n").encode())
        self.file = self.socket.makefile("rb")
        while self.file.readline().strip():
            pass
        self.number = 0
        for domain in ("Page", "Runtime", "Network"):
            self.do(domain + ".enable")

    def receive(self):
        text = b""
        while True:
            first, second = self.file.read(2)
            length = second & 127
            if length >= 126:
                length = struct.unpack(">H" if length == 126 else ">Q", self.file.read(2 if length == 126 else 8))[0]
            text += self.file.read(length)
            if first & 0x80:
                return json.loads(text)

    def do(self, method, **parameters):
        self.number += 1
        text = json.dumps({"id": self.number, "method": method, "params": parameters}).encode()
        mask = os.urandom(4)
        length = len(text)
        head = bytes([0x81, 0x80 | length]) if length < 126 else b"\x81\xfe" + struct.pack(">H", length)
        self.socket.sendall(head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(text)))
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, expression):
        result = self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, address):
        self.do("Page.navigate", url=address)
        wait("the page is loaded", lambda: self.evaluate("document.readyState + location.href") == "complete" + address)

    def picture(self, path):
        data = self.do("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))


def wait(what, look, seconds=30):
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


PAINT = """new Promise(done => {
    const look = () => {
        const paint = performance.getEntriesByName("first-contentful-paint")[0];
        const navigation = performance.getEntriesByType("navigation")[0];
        if (!paint) return setTimeout(look, 20);
        done({ firstPaint: paint.startTime, answered: navigation.responseEnd, loaded: navigation.loadEventEnd,
               bytes: navigation.decodedBodySize, rows: document.querySelectorAll("#services tr").length });
    };
    look();
})"""


# In a column that is too narrow every word takes lines of its own.
HEIGHTS = """[...document.querySelectorAll("#services td")].map(cell => cell.getBoundingClientRect().height)"""


def check_layout(tab, width, lines, failures):
    tallest = tab.evaluate(f"Math.max(0, ...{HEIGHTS})")
    wide = tab.evaluate("document.documentElement.scrollWidth")
    print(f"at {width} px: the tallest row {tallest:.0f} px, the page {wide} px wide")
    if tallest > 20 * lines + 8 or wide > width:
        failures.append(f"the tables have no room at {width} px")


def check(tab, address, out, name):
    failures = []
    size = {"width": 1280, "height": 860, "deviceScaleFactor": 1, "mobile": False}
    tab.do("Emulation.setDeviceMetricsOverride", **size)
    paints = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        tab.do("Emulation.setEmulatedMedia", features=features)
        for _ in range(3):
            tab.open("about:blank")
            tab.open(address)
            paints.append(tab.evaluate(PAINT))
        tab.picture(out / f"{name}-{scheme}.png")
    check_layout(tab, size["width"], 2, failures)
    print(json.dumps(paints[-1]))
    median = sorted(paint["firstPaint"] for paint in paints)[len(paints) // 2]
    print(f"first contentful paint: {', '.join('%.0f' % paint['firstPaint'] for paint in paints)} ms")
    if median > 1000 and address.startswith("http"):
        failures.append("the first paint takes more than a second")
    if address.startswith("http"):
        tab.evaluate("scrollTo(0, 2000)")
        tab.evaluate("window.before = document.querySelector('main'); 1")
        at = tab.evaluate("scrollY")
        top = "[...document.querySelectorAll('#services th[id]')].find(it => it.getBoundingClientRect().top > 0).id"
        seen = tab.evaluate(top)
        wait("it refreshes itself", lambda: tab.evaluate("document.querySelector('main') !== window.before"))
        if (tab.evaluate("scrollY"), tab.evaluate(top)) != (at, seen):
            failures.append(f"a refresh jumps from {at} to {tab.evaluate('scrollY')}")
        print(f"refresh: scroll position {at} stays, {seen} stays on top")
    rows = tab.evaluate("document.querySelectorAll('#services tr').length")
    tab.do("Emulation.setScriptExecutionDisabled", value=True)
    tab.open(address)
    without = tab.do("DOM.getDocument", depth=0)["root"]["nodeId"]
    found = tab.do("DOM.querySelectorAll", nodeId=without, selector="#services tr")["nodeIds"]
    print(f"rows: {rows} with JavaScript, {len(found)} without")
    if abs(len(found) - rows) > rows / 10 or not found:
        failures.append("tables need JavaScript")
    tab.do("Emulation.setScriptExecutionDisabled", value=False)
    tab.do("Emulation.setDeviceMetricsOverride", **(size | {"width": 480}))
    tab.open(address)
    tab.picture(out / f"{name}-narrow.png")
    check_layout(tab, 480, 4, failures)
    return failures


def main(out, address, name):
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
                 "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        browser = subprocess.Popen([CHROMIUM, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = pathlib.Path(profile, "DevToolsActivePort")
            wait("the browser starts", lambda: port.exists() and port.read_text().count("\n") >= 1, 60)
            failures = check(Tab(int(port.read_text().split()[0])), address, pathlib.Path(out), name)
        finally:
            browser.terminate()
            browser.wait()
    for failure in failures:
        print(f"WRONG: {failure}", file=sys.stderr)
    sys.exit(bool(failures))


main(*sys.argv[1:])
