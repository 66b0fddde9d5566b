"""Compare the ratios of two runs of the benchmarks: python -m bench.compare NEW.json OLD.json.

A ratio is the time of ours divided by the time of something else in the same run, so larger is
worse. Exit code 0: none is more than 15 % worse than the saved one; 1: some are; 2: a file cannot
be read, or the two have no ratio in common.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ALLOWED = 0.15


class UnreadableError(Exception):
    """A file that is missing or damaged; the message is the line to print."""


def read(path: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Return a file's ratios, named "benchmark / other", and the facts of its machine."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        machine = dict(run["machine_info"])
        ratios = {
            f"{row['name']} / {other}": float(ratio)
            for row in run["benchmarks"]
            for other, ratio in row["extra_info"].get("ratio", {}).items()  # seconds alone: none
        }
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}; make bench measures one") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnreadableError(f"{path}: damaged, or not written by make bench") from None
    if not all(0 < ratio < math.inf for ratio in ratios.values()):
        raise UnreadableError(f"{path}: damaged, a ratio is not a positive number")
    return ratios, machine


def report(new: dict[str, float], old: dict[str, float]) -> int:
    """Print a line for every ratio; return how many are too much worse."""
    shared = [name for name in old if name in new]
    width = max(map(len, shared))
    print(f"{'larger is worse':{width}} {'old':>9} {'new':>9} {'change':>8}")
    worse = 0
    for name in shared:
        change = new[name] / old[name] - 1
        worse += change > ALLOWED
        mark = "  WORSE" if change > ALLOWED else ""
        print(f"{name:{width}} {old[name]:9.3g} {new[name]:9.3g} {change:+8.1%}{mark}")
    for side, ratios, others in (("new", new, old), ("old", old, new)):
        for name in others.keys() - ratios.keys():
            print(f"{name}: missing in the {side} file")
    print(f"{worse} of {len(shared)} ratios are more than {ALLOWED:.0%} worse")
    return worse


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("new", type=Path, metavar="NEW.json")
    parser.add_argument("old", type=Path, metavar="OLD.json")
    paths = parser.parse_args(arguments)
    try:
        (new, new_machine), (old, old_machine) = read(paths.new), read(paths.old)
        if not new.keys() & old.keys():
            raise UnreadableError(f"{paths.new} and {paths.old} have no ratio in common")
    except UnreadableError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if new_machine != old_machine:  # ratios carry over between machines, but not to 15 %
        print(f"Not the same machine: {old_machine} before, {new_machine} now")
    return 1 if report(new, old) else 0


if __name__ == "__main__":
    sys.exit(main())
