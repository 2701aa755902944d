#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""terminal.py TITLE <RECORDING >PICTURE.svg: what a terminal showed last, from what was really written to it."""

import html
import re
import sys

COLOURS = {"31": "#f47067", "32": "#8ddb8c", "33": "#f6b26b"}
SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")
WIDTH, HEIGHT = 7.83, 18


def last_screen(text):
    """What was written since the screen was last begun anew. Recordings end with the other screen's end."""
    text = re.sub(r"\x1b\[\?1049l.*\Z", "", text, flags=re.S)
    text = re.sub(r"\ASc?ript started[^\n]*\n|\n?Script done.*\Z", "", text, flags=re.S)
    return text.rsplit("\x1b[H", 1)[-1]


def spans(line):
    style, at = {}, 0
    for found in SEQUENCE.finditer(line):
        if found.start() > at:
            yield dict(style), line[at:found.start()]
        at = found.end()
        if found.group(2) != "m":
            continue
        for code in found.group(1).split(";"):
            if code in ("", "0"):
                style = {}
            elif code == "1":
                style["font-weight"] = "bold"
            elif code == "2":
                style["fill"] = "#8b949e"
            elif code in COLOURS:
                style["fill"] = COLOURS[code]
    if at < len(line):
        yield dict(style), line[at:]


def main(title):
    lines = last_screen(sys.stdin.read()).replace("\r", "").rstrip("\n").split("\n")
    longest = max(len(SEQUENCE.sub("", line)) for line in lines)
    width, height = round(longest * WIDTH + 40), len(lines) * HEIGHT + 60
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
          'font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,\'DejaVu Sans Mono\',monospace" font-size="13">')
    print(f'<rect width="{width}" height="{height}" rx="8" fill="#161b22"/>')
    print(f'<text x="20" y="26" fill="#8b949e">$ {html.escape(title)}</text>')
    for number, line in enumerate(lines):
        column, y = 0, 54 + number * HEIGHT
        for style, text in spans(line):
            fill = {"fill": "#e6edf3"} | style
            attributes = " ".join(f'{name}="{value}"' for name, value in fill.items())
            if text.strip():
                print(f'<text x="{20 + column * WIDTH:.1f}" y="{y}" {attributes} xml:space="preserve" '
                      f'textLength="{len(text) * WIDTH:.1f}">{html.escape(text)}</text>')
            column += len(text)
    print("</svg>")


main(" ".join(sys.argv[1:]))
