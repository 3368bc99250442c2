# SPDX-License-Identifier: GPL-2.0
"""From the lines that the guest printed to figures: medians, and ratios to the reference."""

import json
import statistics

from contenders import CONTENDERS, REFERENCE

MIB = 1 << 20


class Cell:
    """What one contender did in one row: a list with one entry for each round that worked."""

    def __init__(self):
        self.rounds = {}
        self.reason = ""

    def per_round(self, figure):
        """{round: value} of "throughput" (MiB/s), "ops" (a second), "cpu" (ns for one operation)."""
        values = {}
        for number, record in self.rounds.items():
            if figure == "throughput":
                value = record["bytes"] / MIB / (record["ns"] / 1e9) if record["ns"] else 0
            elif figure == "ops":
                value = record["ops"] / (record["ns"] / 1e9) if record["ns"] else 0
            else:
                value = record["cpu_ns"] / record["ops"]
            if value > 0:
                values[number] = value
        return values

    def median(self, figure):
        values = self.per_round(figure).values()
        return statistics.median(values) if values else None

    def upcalls(self):
        """{name: requests for one operation}, those that came at all."""
        sums, ops = {}, 0
        for record in self.rounds.values():
            ops += record["ops"]
            for name, count in record["upcalls"].items():
                sums[name] = sums.get(name, 0) + count
        return {name: count / ops for name, count in sums.items() if count}


class Figures:
    """All that one boot measured."""

    def __init__(self, text):
        """`text` is the guest's output."""
        self.head = {}
        self.cells = {}
        self.checks = []
        self.rows, names = [], set()
        for line in text.splitlines():
            if not line.startswith("@"):
                continue
            try:
                record = json.loads(line[1:])
            except ValueError:
                # Cut off where the guest was killed.
                continue
            if "row" not in record:
                if "check" in record:
                    self.checks.append(record)
                else:
                    self.head.update(record)
                continue
            if record["row"] not in self.rows:
                self.rows.append(record["row"])
            names.add(record["contender"])
            cell = self.cells.setdefault((record["row"], record["contender"]), Cell())
            if "impossible" in record:
                cell.reason = record["impossible"]
            else:
                cell.rounds[record["round"]] = record
        self.contenders = [contender for contender in CONTENDERS if contender.name in names]

    def cell(self, row, contender):
        return self.cells.get((row, contender), Cell())

    def ratios(self, row, contender, figure):
        """How much of the reference's figure, one for each round.

        Within a round the two were measured one shortly after the other, so that
        what slows the machine down for a while counts for both.
        """
        mine = self.cell(row, contender).per_round(figure)
        reference = self.cell(row, REFERENCE).per_round(figure)
        return [value / reference[number] for number, value in mine.items() if number in reference]

    def ratio(self, row, contender, figure):
        """The median of those."""
        ratios = self.ratios(row, contender, figure)
        return statistics.median(ratios) if ratios else None

    def rounds(self):
        return max((len(cell.rounds) for cell in self.cells.values()), default=0)

    def trouble(self):
        """What was wrong with the volumes afterwards."""
        return [
            f"{record['contender']}, round {record['round']}: {record['check']}"
            for record in self.checks
            if record["check"] != "ok"
        ]
