"""The cipher alone, as a session uses it for each value (crates/envelope/benches)."""

import re
import subprocess

from cluster import ROOT


def measure(_):
    output = subprocess.run(
        ["cargo", "bench", "--quiet", "--locked", "--package", "envelope", "--", "--output-format=bencher",
         "--warm-up-time=1", "--measurement-time=3", "--sample-size=50"],
        cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout
    print(f"{'':8} {'bytes':>9} {'nanoseconds':>12} {'MB/s':>8}")
    # Lines are such as "test seal/8192 ... bench:  3,156 ns/iter (+/- 657)".
    for operation, size, time in re.findall(r"^test (\w+)/?(\d*) .* ([\d,]+) ns/iter", output, re.MULTILINE):
        nanoseconds = int(time.replace(",", ""))
        rate = int(size) * 1000 // nanoseconds if size else ""
        print(f"{operation:8} {size:>9} {nanoseconds:>12} {rate:>8}")
