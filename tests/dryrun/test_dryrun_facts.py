"""What a process left is read with care: any other text gives one clear error."""

import json
from contextlib import suppress

import pytest
from dryrun_cases import error, facts
from hypothesis import given
from hypothesis import strategies as st

from memfit.errors import InputFileError, MemfitError, MissingError
from memfit.mirage.run.facts import read_facts

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3))


def written(folder, document, pid=7):
    (folder / f"{pid}.run.json").write_text(json.dumps(document))
    return folder


def test_facts_are_read(tmp_path):
    found = read_facts(written(tmp_path, facts(error=error(), others=[{"device": 1, "requested_peak": 5}])))[0]
    assert (found.steps, found.allocated_peak, dict(found.others)) == (3, 7 << 20, {1: 5})
    assert found.failure is not None
    assert found.failure.out_of_memory
    assert found.failure.frames[0].code == "loss.backward()"


def test_the_process_that_trained_comes_first(tmp_path):
    for pid, steps in ((1, 0), (2, 3), (3, 1)):
        written(tmp_path, facts(pid=pid, steps=steps), pid)
    assert [f.pid for f in read_facts(tmp_path)] == [2, 3, 1]


def test_an_environment_that_cannot_be_used_says_so(tmp_path):
    with pytest.raises(MissingError, match="not a CUDA build"):
        read_facts(written(tmp_path, {"schema": 1, "pid": 1, "refused": "torch 2.13 is not a CUDA build"}))


def test_nothing_is_nothing(tmp_path):
    assert read_facts(tmp_path) == []


@pytest.mark.parametrize("field", sorted(set(facts()) - {"argv", "free_bytes", "seconds", "complete"}))
def test_a_missing_field_is_an_error(tmp_path, field):
    document = facts()
    del document[field]
    with pytest.raises(InputFileError, match="not what a dry run writes"):
        read_facts(written(tmp_path, document))


@given(st.sampled_from(sorted(facts())), JSON)
def test_any_value_is_taken_or_refused(tmp_path_factory, field, value):
    folder = tmp_path_factory.mktemp("facts")
    with suppress(MemfitError):
        read_facts(written(folder, {**facts(), field: value}))


def test_a_flood_is_refused(tmp_path):
    (tmp_path / "1.run.json").write_text(" " * (5 << 20))
    with pytest.raises(InputFileError, match="larger"):
        read_facts(tmp_path)
