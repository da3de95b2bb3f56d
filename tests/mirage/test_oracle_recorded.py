"""The simulation against recordings of the real allocator binaries (made by ``oracle_record.py``), without network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from oracle import CASES, difference, simulated, without_order

RECORDINGS = [
    pytest.param(path.stem.removeprefix("torch-"), record, id=f"{path.stem} {record['case']}")
    for path in sorted(Path(__file__).with_name("recorded").glob("torch-*.json"))
    for record in json.loads(path.read_text())
]


def parse(text: str) -> tuple:
    command, *numbers = text.split()
    return command, *map(int, numbers)


@pytest.mark.parametrize(("version", "record"), RECORDINGS)
def test_same_addresses_statistics_maps_and_texts(version, record):
    case = next(replace(case, total=record["total"]) for case in CASES if case.name == record["case"])
    got = simulated(version, case, [parse(text) for text in record["commands"]])
    assert difference(record["lines"], without_order(got) if case.uses else got) is None


def test_recordings_cover_five_releases_and_out_of_memory():
    assert len({param.values[0] for param in RECORDINGS}) >= 5
    texts = [line for param in RECORDINGS for line in param.values[1]["lines"] if line.startswith("o ")]
    assert len(texts) >= 10
