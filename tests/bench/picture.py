# SPDX-License-Identifier: GPL-2.0
"""A picture of the throughputs: a line for each row, a mark on it for each contender."""

import math
from xml.sax.saxutils import escape

from contenders import REFERENCE

LINE = 22
LEFT, WIDTH, RIGHT = 430, 620, 30
TOP = 40
# Each in a colour that can also be told from the others without seeing colours well, and in a form.
STYLES = {
    "ext4": ("#666666", "square"),
    "fuse": ("#d55e00", "cross"),
    "fuse-writeback": ("#e69f00", "cross"),
    "passthrough": ("#cc79a7", "diamond"),
    "iomap-nocache": ("#56b4e9", "circle"),
    "iomap": ("#0072b2", "disc"),
    "iomap-journal": ("#000000", "circle"),
    "lab-in-place": ("#009e73", "disc"),
    "lab-unwritten": ("#009e73", "circle"),
}
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1, 1.25, 2, 5, 10)


def mark(x, y, style):
    """One contender's mark."""
    colour, form = style
    fill = f'fill="{colour}"'
    line = f'fill="none" stroke="{colour}" stroke-width="2"'
    if form == "disc":
        return f'<circle cx="{x:.1f}" cy="{y}" r="5" {fill}/>'
    if form == "circle":
        return f'<circle cx="{x:.1f}" cy="{y}" r="4.5" {line}/>'
    if form == "square":
        return f'<rect x="{x - 4:.1f}" y="{y - 4}" width="8" height="8" {fill}/>'
    if form == "diamond":
        return f'<path d="M{x:.1f} {y - 6}l6 6l-6 6l-6 -6z" {fill}/>'
    return f'<path d="M{x - 4:.1f} {y - 4}l8 8m0 -8l-8 8" {line}/>'


def draw(figures, titles):
    """The picture as SVG."""
    others = [contender for contender in figures.contenders if contender.name != REFERENCE]
    points = {
        (row, contender.name): figures.ratio(row, contender.name, "throughput")
        for row in figures.rows
        for contender in others
    }
    values = [value for value in points.values() if value]
    low = min([0.5, *values]) * 0.9
    high = max([1.25, *values]) * 1.1

    def across(value):
        return LEFT + WIDTH * (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))

    bottom = TOP + LINE * len(figures.rows)
    height = bottom + 50 + LINE * math.ceil(len(others) / 3)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + RIGHT}" height="{height}"'
        ' font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-weight="bold">'
        "Throughput, as a ratio to the kernel’s ext4 without journal (logarithmic)</text>",
    ]
    for tick in TICKS:
        if low <= tick <= high:
            x = across(tick)
            colour, width = ("#000000", 1.5) if tick == 1 else ("#dddddd", 1)
            out.append(
                f'<path d="M{x:.1f} {TOP - 5}V{bottom}" stroke="{colour}" stroke-width="{width}"/>'
                f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
            )
    for number, row in enumerate(figures.rows):
        y = TOP + LINE * number + LINE // 2
        out.append(
            f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(titles[row])}</text>'
            f'<path d="M{LEFT} {y}H{LEFT + WIDTH}" stroke="#eeeeee"/>'
        )
        for contender in others:
            value = points[row, contender.name]
            if value:
                out.append(mark(across(value), y, STYLES[contender.name]))
    for number, contender in enumerate(others):
        x, y = 30 + 360 * (number % 3), bottom + 45 + LINE * (number // 3)
        out.append(mark(x, y - 4, STYLES[contender.name]))
        out.append(f'<text x="{x + 12}" y="{y}">{escape(contender.name)}</text>')
    out.append("</svg>\n")
    return "\n".join(out)
