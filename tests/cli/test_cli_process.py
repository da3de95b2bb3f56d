"""Real processes: pipes, start-up, the corpus of malformed files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from memfit.cli.app import app

ROOT = Path(__file__).parents[2]
BOMBS = ROOT / "tests" / "bombs"
# A config.json where a job is expected is no fault here: this command takes models too.
A_MODEL = "jobs/config-as-job.json"
FILES = sorted({str(p.relative_to(BOMBS)) for f in ("jobs", "configs") for p in (BOMBS / f).iterdir()} - {A_MODEL})
MEMFIT = [sys.executable, "-m", "memfit.cli"]
FITS = ["estimate", "llama-3.1-8b", "--gpu", "8xh100", "--zero", "3", "--ckpt", "full"]


def start(*words, **more):
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "MEMFIT_DEBUG")}
    env.update(more.pop("env", {}))
    return subprocess.run([*MEMFIT, *words], capture_output=True, env=env, check=False, timeout=120, **more)


@pytest.mark.parametrize("name", FILES)
def test_malformed_files_give_one_clear_error(name):
    result = CliRunner().invoke(app, ["estimate", str(BOMBS / name)], env={"COLUMNS": "100"})
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert all(c.isprintable() or c == "\n" for c in result.stderr)
    assert len(result.stderr) < 3000


def test_a_configuration_is_taken_as_the_model():
    result = CliRunner().invoke(app, ["estimate", str(BOMBS / A_MODEL), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["model"]["source"] == f"file {BOMBS / A_MODEL}"


def test_a_malformed_file_in_a_real_process():
    done = start("estimate", str(BOMBS / "jobs" / "alias-bomb.yaml"))
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: ")


def test_piped_output_is_plain_and_equal_to_what_a_terminal_of_80_shows():
    done = start(*FITS, env={"PYTHONIOENCODING": "utf-8"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\x1b" not in done.stdout
    assert max(len(line) for line in done.stdout.decode().splitlines() if not line.startswith("next:")) == 80


def test_an_encoding_without_blocks_gets_ascii():
    done = start(*FITS, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()


def test_a_reader_that_leaves_ends_the_program_quietly():
    for words in (["models"], ["estimate", "--batch", "-"]):
        process = subprocess.Popen(
            [*MEMFIT, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        process.stdout.close()
        job = json.dumps({"model": {"name": "qwen3-0.6b"}}).encode() + b"\n"
        process.stdin.write(job * 200)
        process.stdin.close()
        errors = process.stderr.read()
        process.stderr.close()
        assert process.wait(timeout=120) == 141
        assert errors == b""


def test_a_full_disk():
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*MEMFIT, "gpus"], stdout=full, stderr=subprocess.PIPE, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr == b"error: cannot write the result: No space left on device\n"


def test_an_error_that_nobody_can_read_keeps_its_exit_code():
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*MEMFIT, "model", "none-such-xyz"], stderr=full, check=False, timeout=120)
    assert done.returncode == 2


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors in a shell")
@pytest.mark.parametrize("words", ["estimate -", "estimate --batch -"])
def test_standard_input_that_is_closed(words):
    done = subprocess.run(
        ["sh", "-c", f'"$@" {words} <&-', "sh", *MEMFIT], capture_output=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: standard input is closed\n")


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors in a shell")
def test_a_batch_whose_answers_nobody_reads():
    jobs = str(ROOT / "examples" / "jobs.jsonl")
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *MEMFIT, "estimate", "--batch", jobs],
        stderr=subprocess.PIPE,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_bytes_on_standard_input():
    done = start("estimate", "-", input=b"\x80\x04model")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: standard input is not what it claims to be: it looks like a Python pickle\n")


@pytest.mark.parametrize("words", [["-h"], ["estimate", "-h"], ["dryrun", "-h"]])
def test_the_short_way_to_help(words):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")


def modules_after(code):
    script = f"import sys\ntry:\n{code}\nexcept SystemExit:\n    pass\nsys.stderr.write('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stderr.split("\n"))


@pytest.mark.parametrize("words", ["'--help'", "'--version'", "'estimate', '--help'"])
def test_help_loads_neither_numpy_nor_a_model(words):
    """The start-up budget as what is loaded; a time would measure the machine."""
    loaded = modules_after(f"    from memfit.cli import main\n    main([{words}])")
    assert "memfit.cli.app" in loaded
    heavy = {"numpy", "torch", "rich", "msgspec", "yaml", "asyncio", "importlib.metadata", "memfit.formula.estimate"}
    assert not loaded & heavy
    assert not any(name.startswith(("memfit.models", "memfit.hardware")) for name in loaded)


def test_an_estimate_loads_neither_numpy_nor_rich():
    loaded = modules_after("    from memfit.cli import main\n    main(['estimate', 'qwen3-0.6b', '--gpu', 'h100'])")
    assert "memfit.formula.estimate" in loaded
    assert not loaded & {"numpy", "torch", "rich", "yaml"}
