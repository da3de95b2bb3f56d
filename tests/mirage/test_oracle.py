"""The simulation against the allocator binaries of released torch wheels."""

from __future__ import annotations

import sys

import pytest
from oracle import CASES, check
from oracle_wheels import RELEASES, OracleUnavailableError

pytestmark = pytest.mark.mirage


@pytest.mark.parametrize("version", RELEASES)
def test_no_difference_from_the_real_binary(version, capsys):
    runs, lines, problems = 0, 0, []
    for case in CASES:
        if not case.supported(version):
            continue
        for seed in (1001, 1002):
            try:
                problem, compared, _ = check(version, case, seed)
            except OracleUnavailableError as error:
                pytest.skip(f"allocator binaries are not available: {error}")
            runs, lines = runs + 1, lines + compared
            if problem:
                problems.append(f"{case.name}, seed {seed}: {problem}")
    with capsys.disabled():
        sys.stdout.write(f"\ntorch {version}: {runs} runs, {lines} lines compared, {len(problems)} differences\n")
    assert not problems
    assert runs >= 50
    assert lines > 30_000
