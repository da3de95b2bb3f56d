"""The error tree: stable codes, exit codes, and messages that say where and what."""

import inspect

import pytest

from memfit import errors
from memfit.errors import (
    ConfigError,
    InputFileError,
    JobError,
    JobErrors,
    MemfitError,
    MissingError,
    UnknownNameError,
    nearest,
)

CODES = {
    MemfitError: ("memfit", 2),
    JobError: ("job", 2),
    JobErrors: ("job", 2),
    ConfigError: ("config", 2),
    UnknownNameError: ("unknown-name", 2),
    InputFileError: ("input-file", 2),
    MissingError: ("missing", 3),
}


def test_every_error_has_a_stable_code_and_exit_code():
    found = {e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, MemfitError)}
    assert {e: (e.code, e.exit_code) for e in found} == CODES


def test_a_fault_says_where_what_and_what_is_allowed():
    error = JobError("strategy.zero", "must be at most 3", value=4, bound="3", hint="use 3")
    assert str(error) == "`strategy.zero`: must be at most 3"
    assert error.to_dict() == {
        "code": "job",
        "message": "`strategy.zero`: must be at most 3",
        "hint": "use 3",
        "path": "strategy.zero",
        "value": 4,
        "bound": "3",
    }


def test_all_faults_stand_in_one_error():
    faults = [JobError("a", "x"), JobError("b", "y", hint="h")]
    error = JobErrors(faults)
    assert error.errors == tuple(faults)
    assert error.message == "`a`: x; `b`: y"
    assert error.hint == "h"
    assert [e["path"] for e in error.to_dict()["errors"]] == ["a", "b"]


def test_an_unknown_name_comes_with_the_nearest_ones():
    error = UnknownNameError("GPU", "h10", ["h100", "h200", "a100", "rtx-4090"])
    assert error.message.startswith("unknown GPU `h10` (did you mean `h100`")
    assert error.name == "h10"
    assert "did you mean" not in UnknownNameError("GPU", "zzzzzz", ["h100"]).message


@pytest.mark.parametrize(
    ("name", "best"), [("LLAMA-3.1-8b", "llama-3.1-8b"), ("llama31-8b", "llama-3.1-8b"), ("Qwen2.5-7B", "qwen2.5-7b")]
)
def test_nearest_ignores_case_and_punctuation_slips(name, best):
    assert nearest(name, ["llama-3.1-8b", "qwen2.5-7b", "gpt2"])[0] == best


def test_nearest_keeps_the_spelling_of_the_known_name_and_its_limit():
    known = ["Alpha1", "Alpha2", "Alpha3", "Alpha4"]
    assert set(nearest("alpha", known)) <= set(known)
    assert len(nearest("alpha", known)) == 3
    assert nearest("alpha", known, limit=1) == nearest("alpha", known)[:1]
