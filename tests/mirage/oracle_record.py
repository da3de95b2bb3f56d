# ruff: noqa: T201 - a command that prints
"""Records what the real binaries do with short programs, for `test_oracle_recorded`.

``python tests/mirage/oracle_record.py`` writes ``recorded/`` anew (with PYTHONPATH=src where memfit is not installed).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from oracle import CASES, Case, program, real, without_order

TOTAL = 900 << 20
RECORDED = Path(__file__).with_name("recorded")
CHOSEN = {
    "2.1.2": ("default, 3 GiB", "captures, uses"),
    "2.4.1": ("default, scattered addresses", "power2 table", "gc", "private pools, uses"),
    "2.9.1": ("max_split + rounding", "expandable, record_stream", "private pools, expandable", "fraction"),
    "2.13.0": ("default, others on the card", "record_stream, lag 5", "private pools", "large segment 64, expandable"),
    "2.15.0": ("small tensors", "captures, expandable", "expandable reserve, descending", "edge sizes"),
}


def compact(commands: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """The program without its many statistics and maps, except the last ones."""
    return [c for c in commands[:-5] if c[0] not in "sm"] + commands[-5:]


def main() -> None:
    """Write one file per release."""
    RECORDED.mkdir(exist_ok=True)
    cases = {case.name: case for case in CASES}
    for version, names in CHOSEN.items():
        records = []
        for name in names:
            case: Case = replace(cases[name], total=min(cases[name].total, TOTAL))
            commands = compact(program(99, case, 260))
            lines = real(version, case, commands)
            lines = without_order(lines) if case.uses else lines
            text = [" ".join(map(str, command)) for command in commands]
            records.append({"case": name, "total": case.total, "commands": text, "lines": lines})
        path = RECORDED / f"torch-{version}.json"
        path.write_text(json.dumps(records, indent=0) + "\n")
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
