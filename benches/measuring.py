"""Takes measurements in pairs, and keeps them."""

import sys
from typing import Callable, NamedTuple

from rows import ROWS


class Side(NamedTuple):
    """One side of a pair."""

    # For people to read, and to repeat.
    command: str
    run: Callable[[], float]


class Measurement(NamedTuple):
    row: str
    pair: int
    measured: float
    baseline: float


class Bench:
    def __init__(self, rows, repeats):
        self.rows = rows
        self.repeats = repeats
        self.measurements = []
        self.commands = {}

    def measure(self, row, measured, baseline, control=None, wide=None):
        """Runs both sides in turn, so many times as the row's definition says. Each is the first as often
        as any other, so that what drifts or disturbs counts for all. The control is like the baseline, so
        that what they differ by is noise; the wide side is, too, but has texts as long as ciphertexts."""
        others = {name: side for name, side in (("control", control), ("wide", wide)) if side}
        sides = {"measured": measured, "baseline": baseline} | others
        names = list(sides)
        print(f"{row:20}", end="", flush=True)
        for pair in range(self.repeats or ROWS[row].pairs):
            first = pair % len(names)
            values = {name: sides[name].run() for name in names[first:] + names[:first]}
            self.record(row, pair, values["measured"], values["baseline"])
            for name in others:
                self.record(f"{row}_{name}", pair, values[name], values["baseline"])
            print(f" {ROWS[row].compare(values['measured'], values['baseline']):.3f}", end="", flush=True)
        print()
        self.commands[row] = (measured.command, baseline.command)

    def record(self, row, pair, measured, baseline):
        if min(measured, baseline) <= 0:
            sys.exit(f"{row}: with so few rows nothing can be measured")
        self.measurements.append(Measurement(row, pair + 1, measured, baseline))


def statement(cluster, sql, *before, plan=""):
    """The side that is the time of a statement, after those `before`, if the plan has what it must have."""
    if plan not in cluster.psql(*before, f"EXPLAIN {sql}" if plan else "SELECT"):
        sys.exit(f"the plan has no {plan}: {sql}")
    command = "; ".join((*before, sql)).replace(f"{cluster.folder}/", "")
    return Side(command, lambda: cluster.milliseconds(sql, *before))
