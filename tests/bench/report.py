#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tables and a picture of what the benchmark measured.

    tests/bench/report.py LINES NAME [NOTE...]

LINES is what the guest printed, and NAME.md, NAME.csv and NAME.svg are written;
each NOTE is a line about how it was measured.
"""

import csv
import io
import pathlib
import sys

sys.dont_write_bytecode = True

import picture  # noqa: E402
import rows  # noqa: E402
from contenders import REFERENCE, UPCALLS  # noqa: E402
from figures import Figures  # noqa: E402

TITLES = {row.name: row.title for row in rows.profile("full")}


def number(value):
    """Three digits that count."""
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head, lines):
    """A table of Markdown: the first column is text, the others are numbers."""
    rule = ["---"] + ["--:"] * (len(head) - 1)
    return "".join("| " + " | ".join(line) + " |\n" for line in [head, rule, *lines]) + "\n"


class Report:
    def __init__(self, figures, notes):
        self.figures = figures
        self.notes = notes
        self.others = [c for c in figures.contenders if c.name != REFERENCE]
        self.reasons = {}

    def _cell(self, row, contender, figure):
        ratio = self.figures.ratio(row, contender, figure)
        if ratio is not None:
            return number(ratio)
        reason = self.figures.cell(row, contender).reason
        if not reason:
            return "–"
        mark = self.reasons.setdefault(reason, len(self.reasons) + 1)
        return f"– ({mark})"

    def ratios(self, figure, unit, scale):
        """One table: the reference's figure, and what it is for all others as a ratio to that."""
        head = ["", f"{REFERENCE}, {unit}"] + [contender.name for contender in self.others]
        lines = []
        for row in self.figures.rows:
            base = self.figures.cell(row, REFERENCE).median(figure)
            line = [TITLES[row], number(None if base is None else base / scale)]
            lines.append(line + [self._cell(row, contender.name, figure) for contender in self.others])
        return table(head, lines)

    def upcalls(self):
        servers = [contender for contender in self.others if contender.server]
        head = [""] + [contender.name for contender in servers]
        lines = []
        for row in self.figures.rows:
            line = [TITLES[row]]
            for contender in servers:
                cell = self.figures.cell(row, contender.name)
                parts = [
                    f"{value:.3f}".rstrip("0").rstrip(".") + " " + name.removeprefix("IOMAP_")
                    for name, value in cell.upcalls().items()
                    if value >= 0.0005
                ]
                line.append(", ".join(parts) or ("0" if cell.rounds else "–"))
            lines.append(line)
        return table(head, lines)

    def beside_the_draft(self):
        """The rows for which there are published figures of another implementation."""
        ours = [name for name in ("iomap", "iomap-nocache") if name in {c.name for c in self.others}]
        if not ours or not set(rows.DRAFT) & set(self.figures.rows):
            return ""
        head = ["", "iomap", "the draft, warm cache", "iomap-nocache", "the draft, no cache"]
        lines = [
            [TITLES[row], self._cell(row, "iomap", "throughput"), number(rows.DRAFT[row][0]),
             self._cell(row, "iomap-nocache", "throughput"), number(rows.DRAFT[row][1])]
            for row in self.figures.rows if row in rows.DRAFT
        ]  # fmt: skip
        return (
            "## Beside the published draft\n\nThroughput as a ratio to the kernel's ext4 without journal; the "
            "draft's figures are of another machine, with the same jobs.\n\n" + table(head, lines)
        )

    def markdown(self, name):
        text = f"# Benchmark: {name}\n\n"
        text += "".join(f"- {note}\n" for note in self.notes)
        text += f"- Linux {self.figures.head.get('kernel', '?')}, {self.figures.head.get('fio', 'fio')}, "
        text += f"median of {self.figures.rounds()} rounds\n\n"
        text += table(["contender", ""], [[c.name, c.title] for c in self.figures.contenders])
        text = text.replace("| --- | --: |", "| --- | --- |")
        text += f"![throughput as a ratio to the kernel's ext4]({name}.svg)\n\n"
        text += self.beside_the_draft()
        text += "## Throughput\n\nThe reference in MiB/s, the others as a ratio to it: more is better.\n\n"
        text += self.ratios("throughput", "MiB/s", 1)
        text += "## Processor time for one operation\n\nThe reference in µs, the others as a ratio to it, "
        text += "server and all: less is better.\n\n"
        text += self.ratios("cpu", "µs", 1000)
        text += "## Requests to the server for one operation\n\n" + self.upcalls()
        if self.reasons:
            text += "Not possible, because:\n\n"
            text += "".join(f"{mark}. {reason}\n" for reason, mark in self.reasons.items()) + "\n"
        trouble = self.figures.trouble()
        text += "## Afterwards\n\n"
        if trouble:
            text += "".join(f"- {line}\n" for line in trouble)
        else:
            text += f"{len(self.figures.checks)} volumes were unmounted, and those of ext4 checked by e2fsck: "
            text += "nothing was found.\n"
        return text

    def csv(self):
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(
            ["row", "contender", "rounds", "mib_per_s", "ops_per_s", "cpu_ns_per_op", "throughput_ratio",
             "throughput_ratio_min", "throughput_ratio_max", "cpu_ratio", *UPCALLS, "not_possible"]
        )  # fmt: skip
        for row in self.figures.rows:
            for contender in self.figures.contenders:
                writer.writerow(self._record(row, contender.name))
        return out.getvalue()

    def _record(self, row, name):
        cell = self.figures.cell(row, name)

        def plain(value, digits=3):
            return "" if value is None else f"{value:.{digits}f}"

        ratios = self.figures.ratios(row, name, "throughput")
        upcalls = cell.upcalls()
        return [
            row, name, len(cell.rounds), plain(cell.median("throughput"), 1), plain(cell.median("ops"), 0),
            plain(cell.median("cpu"), 0), plain(self.figures.ratio(row, name, "throughput")),
            plain(min(ratios, default=None)), plain(max(ratios, default=None)),
            plain(self.figures.ratio(row, name, "cpu")),
            *(plain(upcalls.get(call, 0), 4) for call in UPCALLS),
            "" if cell.rounds else cell.reason,
        ]  # fmt: skip


def write(text, path, notes):
    """Makes the three files beside `path`, which has no suffix; returns the text of the first."""
    figures = Figures(text)
    report = Report(figures, notes)
    markdown = report.markdown(path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".md").write_text(markdown, encoding="utf-8")
    path.with_name(path.name + ".csv").write_text(report.csv(), encoding="utf-8")
    path.with_name(path.name + ".svg").write_text(picture.draw(figures, TITLES), encoding="utf-8")
    return markdown


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__.strip())
    print(write(pathlib.Path(sys.argv[1]).read_text(errors="replace"), pathlib.Path(sys.argv[2]), sys.argv[3:]))
