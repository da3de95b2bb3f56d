"""``memfit dryrun``: words and flags; what is missing exits with 3."""

import sys

import pytest
from click.testing import CliRunner

import memfit.mirage.prepare  # noqa: F401 - the module, which the package hides behind its function
from memfit.cli.app import app


def run(*words):
    env = {"COLUMNS": "80", "NO_COLOR": "1", "FORCE_COLOR": None, "MEMFIT_DEBUG": None}
    return CliRunner().invoke(app, ["dryrun", *words], env=env)


def refused(*words, code=2):
    result = run(*words)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return result.stderr


def test_help_tells_the_exit_codes():
    assert "2 the script failed" in run("--help").stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "no command is given"),
        (("python", "train.py"), "no card is given"),
        (("--gpu", "h100-sxm-80gb", "--frobnicate", "python", "train.py"), "unknown option `--frobnicate`"),
        (("--gpu", "nosuch", "--", "python", "t.py"), "unknown GPU"),
        (("--gpu", "mi300x", "--", "python", "t.py"), "runs no CUDA"),
        (("--gpu", "rtx-4090", "--memory", "much", "--", "python", "t.py"), "--memory"),
        (("--gpu", "rtx-4090", "--rank", "4", "--ranks", "4", "--", "python", "t.py"), "no rank 4"),
        (("--gpu", "rtx-4090", "--svg", "/no/such/x.svg", "--", "python", "t.py"), "cannot be written"),
        (("setup", "--frob"), "unknown word `--frob`"),
    ],
)
def test_bad_words_are_refused(words, told, monkeypatch):
    monkeypatch.setattr("memfit.mirage.check_machine", lambda **_: None)
    python = ("--python", sys.executable) if "--" in words else ()
    assert told in refused(*python, *words)


def test_an_interpreter_that_is_not_there_is_missing(monkeypatch):
    monkeypatch.setattr("memfit.mirage.check_machine", lambda **_: None)
    words = ("--gpu", "rtx-4090", "--python", "/no/such/python", "--", "python", "t.py")
    assert "no interpreter" in refused(*words, code=3)


def test_another_system_is_told_to_use_a_container(monkeypatch):
    monkeypatch.setattr("memfit.mirage.machine.sys.platform", "darwin")
    assert "Linux container" in refused("--gpu", "rtx-4090", "--", "python", "t.py", code=3)


def test_an_interpreter_without_torch_is_missing(monkeypatch):
    monkeypatch.setattr("memfit.mirage.check_machine", lambda **_: None)
    monkeypatch.setattr(sys.modules["memfit.mirage.prepare"], "check_machine", lambda **_: None)
    monkeypatch.setattr("memfit.mirage.torchbuild._PROBE", "print('{\"torch\": null}')")
    told = refused("--gpu", "rtx-4090", "--python", sys.executable, "--", "python", "t.py", code=3)
    assert "has no torch" in told
    assert "memfit dryrun setup" in told
