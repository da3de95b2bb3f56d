"""The child process: its limits, its words, and the answer from what it left. A script stands in for torch."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from dryrun_cases import SCRIPT

from memfit.errors import MemfitError, MissingError
from memfit.hardware import lookup_gpu
from memfit.mirage.run import RunOptions, dryrun, dryrun_stages
from memfit.mirage.run.child import run_child
from memfit.mirage.run.extensions import extensions
from memfit.mirage.run.options import HOOK
from memfit.report.dryrun import dryrun_document, dryrun_text, headline, stages_document, stages_text
from memfit.report.page import Page

GPU = lookup_gpu("rtx-4090")[0]
PYTHON = Path(sys.executable)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="dry runs need Linux")


def child(code, **limits):
    return run_child([sys.executable, "-c", code], os.environ, **{"timeout_s": 60, "host_memory_bytes": None, **limits})


def run(body, steps=3, cards=None, stages=None, **more):
    code = SCRIPT.format(tests=str(Path(__file__).parent), body=body)
    options = RunOptions(command=("python", "-c", code), python=PYTHON, steps=steps, **more)
    seen = [] if cards is None else cards

    def environment(total):
        seen.append(total)
        return {"CARD": str(total or 0)}

    arguments = (GPU, environment)
    if stages:
        return dryrun_stages(options, stages, *arguments, base=dict(os.environ))
    return dryrun(options, *arguments, base=dict(os.environ))


def test_output_is_kept_and_passed_on():
    parts = []
    ended = child("import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)", echo=parts.append)
    assert ended.code == 3
    assert b"".join(parts).split() == [b"one", b"two"]
    assert set(ended.last_lines) == {"one", "two"}


def test_a_script_that_takes_too_long_is_ended_with_its_children():
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"  # noqa: E501
    ended = child(code, timeout_s=1)
    assert ended.stopped == "time"
    assert ended.seconds < 30


def test_a_script_that_takes_too_much_memory_is_ended():
    ended = child("import time; x = bytearray(300 << 20); time.sleep(60)", host_memory_bytes=100 << 20)
    assert ended.stopped == "memory"
    assert ended.host_peak_bytes > 100 << 20


def test_a_program_that_is_not_there_is_missing():
    with pytest.raises(MissingError, match="cannot be started"):
        run_child(["/no/such/program"], {}, timeout_s=1, host_memory_bytes=None)


def test_a_run_that_fits():
    done = run("cases.leave(folder)")
    assert done.fits
    assert done.facts.steps == 3
    assert done.snapshot == b"snapshot"
    assert done.answer.capacity_bytes == GPU.total_bytes
    assert done.answer.outside_bytes == GPU.context_bytes
    assert headline(done).startswith("fits: needs ")
    text = dryrun_text(Page(), done)
    assert "note: a note" in text
    assert "the smallest card" in text
    document = dryrun_document(done)
    assert (document["verdict"], document["run"]["steps"], document["run"]["out_of_memory"]) == ("fits", 3, None)


def test_a_run_that_does_not_fit_is_run_again_without_a_limit():
    cards = []
    body = "cases.leave(folder, **({} if int(os.environ['CARD']) > 1 << 40 else {'error': cases.error(), 'steps': 0}))"
    done = run(body, cards=cards)
    assert cards == [None, 4 << 40]
    assert not done.fits
    assert done.failure is None
    assert done.facts.steps == 3
    text = dryrun_text(Page(width=200), done)
    assert text.startswith("does not fit")
    assert "Tried to allocate 2.00 GiB" in text
    assert "train.py:3 <module>: loss.backward()" in text
    assert dryrun_document(done)["run"]["out_of_memory"]["type"] == "OutOfMemoryError"


def test_a_failure_after_the_first_step_is_told_beside_the_report():
    done = run("cases.leave(folder, steps=1, error=cases.error('ValueError', 'no more data', False))")
    assert done.fits
    assert "no more data" in dryrun_text(Page(width=200), done)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("cases.leave(folder, steps=0, error=cases.error('ValueError', 'bad flag', False))", "ValueError: bad flag"),
        ("print('hello')", "without using the GPU"),
        ("sys.exit('no such file')", "failed with exit code 1"),
        ("os.abort()", "failed with signal 6"),
        ("(folder / '1.run.json').write_text('{')", "not JSON"),
        ("cases.leave(folder); (folder / '7.trace.json.gz').write_bytes(b'x')", "cannot read the trace"),
    ],
)
def test_what_went_wrong_is_said(body, told):
    with pytest.raises(MemfitError, match=told) as caught:
        run(body)
    assert caught.value.exit_code == 2


def test_limits_of_a_script_are_errors():
    with pytest.raises(MemfitError, match="ended after 1 s"):
        run("import time; time.sleep(60)", timeout_s=1)
    with pytest.raises(MemfitError, match="this machine's own memory"):
        run("x = bytearray(300 << 20); import time; time.sleep(60)", host_memory_bytes=100 << 20)


def test_the_fullest_stage_is_shown():
    runs = run("cases.leave(folder)", ranks=4, stages=2)
    assert [r.options.rank for r in runs] == [0, 2]
    assert "stage" in stages_text(Page(), runs)
    assert len(stages_document(runs)["stages"]) == 2
    with pytest.raises(MemfitError, match="do not divide"):
        run("", ranks=4, stages=3)


def test_the_environment_carries_the_options(tmp_path):
    options = RunOptions(command=("python", "t.py"), python=PYTHON, ranks=16, rank=9, fake_weights=True)
    env = options.environment(tmp_path, {"PYTHONPATH": "/x", "MEMFIT_DRYRUN_FAKE_DATA": "old"}, {"CARD": "1"})
    assert env["PYTHONPATH"] == f"{HOOK}:/x"
    assert env["PATH"].startswith(str(PYTHON.parent))
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"]) == ("9", "16", "1", "8")
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["MEMFIT_DRYRUN_FAKE_WEIGHTS"] == "1"
    assert "MEMFIT_DRYRUN_FAKE_DATA" not in env
    assert options.words()[0] == str(PYTHON)
    assert RunOptions(command=("t.py",), python=PYTHON).words() == [str(PYTHON), "t.py"]
    assert RunOptions(command=("torchrun", "t.py"), python=PYTHON).words() == ["torchrun", "t.py"]


def test_options_that_cannot_be_are_refused():
    for wrong in ({"command": ()}, {"ranks": 2, "rank": 2}, {"moe_imbalance": 0.5}):
        with pytest.raises(MemfitError):
            RunOptions(**{"command": ("x",), "python": PYTHON, **wrong})


def test_flash_attention_is_found(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages" / "torch"
    folder.mkdir(parents=True)
    (folder.parent / "flash_attn_2_cuda.cpython-311.so").write_bytes(b"")
    build = SimpleNamespace(folder=folder)
    monkeypatch.setattr("memfit.mirage.run.extensions.inspect_python", lambda _python: build)
    assert [path.name for path in extensions(PYTHON)] == ["flash_attn_2_cuda.cpython-311.so"]
