"""Makes of the measurements a table, files of data, a plot, and README.md's part on them."""

import subprocess
import sys
import tempfile
from statistics import median
from typing import NamedTuple

from cluster import ROOT
from rows import ROWS, TEXT

README = ROOT / "README.md"
BEGIN, END = "<!-- make bench writes this -->\n", "<!-- to here -->\n"


class Summary(NamedTuple):
    """A row's measurements in short, as they are shown."""

    id: str
    what: str
    against: str
    direction: str
    goal: str
    unit: str
    median: str
    lowest: str
    highest: str
    pairs: int

    @property
    def is_shown(self):
        """Whether it is in README.md: what has a goal, and what tells how far to trust it."""
        return self.goal != "" or ROWS[self.id].control

    def cells(self):
        """Of README.md's table."""
        unit = f" {self.unit}" if self.unit else ""
        goal = f"{self.direction} {self.goal}{unit}" if self.goal else ""
        return self.what, self.against, goal, self.median + unit, f"{self.lowest} – {self.highest}"


def summaries(bench):
    for id, row in ROWS.items():
        values = [row.compare(m.measured, m.baseline) for m in bench.measurements if m.row == id]
        if values:
            goal = "" if row.goal is None else f"{row.goal:g}"
            shown = map(digits, (median(values), min(values), max(values)))
            yield Summary(id, row.what, row.against, row.direction, goal, row.difference_in, *shown, len(values))


def digits(value):
    return f"{value:.{3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0}f}"


def print_report(bench, machine):
    shown = list(summaries(bench))
    lines = [("", "what", "against", "goal", "measured", "lowest – highest", "pairs", "")]
    for number, summary in enumerate(shown, 1):
        row = ROWS[summary.id]
        missed = row.goal is not None and not row.is_met_by(float(summary.median))
        cells = (cell.replace("`", "") for cell in summary.cells())
        lines.append((str(number), *cells, str(summary.pairs), "missed" if missed else ""))
    widths = [max(map(len, column)) for column in zip(*lines)]
    print("\nThe medians of the pairs: how many times as much as the other, or how much more\n")
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())

    print("\nThe commands\n")
    for number, summary in enumerate(shown, 1):
        for command in bench.commands.get(summary.id, ()):
            print(f"{number:3}  {' '.join(command.split())}")
    print()
    for name, value in machine.items():
        print(f"{name}: {value}")


def write(bench, machine, folder):
    folder.mkdir(parents=True, exist_ok=True)
    shown = list(summaries(bench))
    write_table(folder / "machine.tsv", ("name", "value"), machine.items())
    write_table(folder / "ratios.tsv", Summary._fields, shown)
    write_table(folder / "measurements.tsv", ("id", "pair", "measured", "baseline", "unit"), (
        (m.row, m.pair, f"{m.measured:.6g}", f"{m.baseline:.6g}", ROWS[m.row].measured_in)
        for m in bench.measurements))
    write_table(folder / "commands.tsv", ("id", "measured", "baseline"), (
        (id, *(" ".join(command.split()) for command in commands)) for id, commands in bench.commands.items()))
    draw(shown, folder / "ratios.svg")


def write_table(file, header, lines):
    file.write_text("".join("\t".join(map(str, line)) + "\n" for line in (header, *lines)))


def draw(shown, picture):
    """If there is all that belongs into the plot: the ratios that have a goal."""
    ratios = [s for s in shown if s.goal and not s.unit]
    if len(ratios) < sum(row.goal is not None and not row.difference_in for row in ROWS.values()):
        return
    times, rates = (
        "".join("\t".join((label(s), s.goal, s.median, s.lowest, s.highest)) + "\n"
                for s in ratios if s.direction == direction)
        for direction in ("≤", "≥"))
    with tempfile.NamedTemporaryFile("w", suffix=".data") as data:
        data.write(f"{times}\n\n{rates}")
        data.flush()
        try:
            subprocess.run(["gnuplot", "-e", f"data = '{data.name}'; picture = '{picture}'",
                            ROOT / "benches/plot.gnuplot"], check=True)
        except FileNotFoundError:
            sys.exit("there is no gnuplot: scripts/prepare bench")


def label(summary):
    against = "" if summary.against == TEXT else f", against {summary.against}"
    return f"{summary.what}{against}".replace("`", "")


def rewrite_readme(bench, machine):
    lines = ["| what | against | goal | measured | lowest – highest |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(summary.cells())} |" for summary in summaries(bench) if summary.is_shown]
    lines += ["", f"{machine['rows']} values, PostgreSQL {machine['PostgreSQL']}, {machine['processor']}, "
              f"{machine['cores']} cores, {machine['date']}, commit {machine['commit']}."]
    before, rest = README.read_text().split(BEGIN)
    _, after = rest.split(END)
    README.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n\n" + END + after)
