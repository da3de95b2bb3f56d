"""What the speed benchmark says when a part is missing; no times."""

import sys

import pytest

import speed


@pytest.mark.parametrize(
    ("part", "module"), [(speed.arrays, "memfit.formula.arrays"), (speed.batch, "memfit.formula.batch")]
)
def test_a_missing_part_is_named_instead_of_measured(part, module, monkeypatch):
    __import__("memfit.formula")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delattr(f"{module}", raising=False)
    (line,) = part(quick=True)
    assert line.value is None
    assert f"{module} is missing" in line.per


def test_the_batch_is_of_jobs_that_are_accepted(monkeypatch):
    seen = []

    class Batch:
        @staticmethod
        def run(lines, *, full):
            seen.extend(lines)
            return iter(())

    monkeypatch.setattr("memfit.formula.batch", Batch, raising=False)
    monkeypatch.setitem(sys.modules, "memfit.formula.batch", Batch)
    monkeypatch.setattr(speed, "best_cpu", lambda call, runs: 1.0)
    speed.batch(quick=True)

    import json

    from memfit.job import complete, parse

    for line in seen[:48]:
        complete(parse(json.loads(line)))


def test_the_modules_a_program_loads_are_counted_even_when_it_exits():
    few = speed.modules("pass")
    assert speed.modules("import sys, csv; print('x'); sys.exit(1)") > few
