"""Every malformed file of the corpus ends in one clear error, of the class and with the words that are expected."""

import json
from pathlib import Path

import pytest

from memfit import job
from memfit.errors import InputFileError, JobErrors, MemfitError
from memfit.readers import read_tree

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "expected.json").read_text())
FILES = sorted(f"{folder}/{path.name}" for folder in ("jobs", "configs") for path in (HERE / folder).iterdir())
CLASSES = {"InputFileError": InputFileError, "JobErrors": JobErrors}


def test_corpus_and_expectations_agree():
    assert sorted(EXPECTED) == FILES
    assert len(FILES) >= 100


@pytest.mark.parametrize("name", FILES)
def test_one_clear_error(name):
    read = job.load if name.startswith("jobs/") else read_tree
    with pytest.raises(MemfitError) as caught:
        read(HERE / name)
    error = caught.value
    assert type(error) is CLASSES[EXPECTED[name]["error"]]
    assert EXPECTED[name]["says"] in error.message
    assert error.exit_code == 2
    assert error.__cause__ is None
    assert error.message.isprintable()
    assert len(error.message) < 1200
    json.dumps(error.to_dict(), default=repr)


def test_all_faults_of_one_job_at_once():
    with pytest.raises(JobErrors) as caught:
        job.load(HERE / "jobs/everything-wrong.yaml")
    assert {error.path for error in caught.value.errors} == {
        "schema", "task.kind", "task.seq_len", "task.lora.rank", "strategy.tp", "strategy.zero", "strategy.zerro",
        "hardware", "modle",
    }  # fmt: skip
