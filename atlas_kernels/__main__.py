"""``python -m atlas_kernels``: which implementations run here, and why the others do not."""

from __future__ import annotations

import argparse
import json
from typing import Any

from . import __version__, _extension, implementations


def report() -> dict[str, Any]:
    """Collect what this installation can do, as plain data."""
    missing = _extension.why_missing()
    module = None if missing else _extension.kernels()
    return {
        "version": __version__,
        "extension": module and module.__file__,
        "built_for": list(module.built_for) if module else [],
        "why_no_extension": missing,
        "implementations": implementations(),
    }


def as_text(data: dict[str, Any]) -> str:
    """Lay a report out as lines for a terminal."""
    lines = [f"atlas_kernels {data['version']}"]
    if data["extension"]:
        lines.append(f"extension: {data['extension']} (built for {', '.join(data['built_for'])})")
    else:
        lines.append(f"extension: none, so what remains is slower: {data['why_no_extension']}")
    head = ("op", "implementation", "devices", "runs here")
    table = [head] + [
        (row["op"], row["implementation"], row["devices"], _verdict(row))
        for row in data["implementations"]
    ]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[3]]))
    return "\n".join(lines)


def _verdict(row: dict[str, Any]) -> str:
    if row["why_not"]:
        return f"no: {row['why_not']}"
    return f"yes ({row['note']})" if row["note"] else "yes"


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m atlas_kernels", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    data = report()
    print(json.dumps(data, indent=2) if parser.parse_args().json else as_text(data))


if __name__ == "__main__":
    main()
