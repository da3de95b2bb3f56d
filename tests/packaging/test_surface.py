"""What others build upon does not change by accident: names, error codes, the command, the package's own data."""

from __future__ import annotations

import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest

import memfit
from memfit import errors

ROOT = Path(__file__).resolve().parents[2]


def test_exported_names():
    assert memfit.__all__ == ["Estimate", "MemfitError", "__version__", "estimate"]
    assert all(hasattr(memfit, name) for name in memfit.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'guess'"):
        _ = memfit.guess


def test_error_codes_and_exit_codes():
    kinds = {
        kind.__name__: (kind.code, kind.exit_code)
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, memfit.MemfitError)
    }
    assert kinds == {
        "MemfitError": ("memfit", 2),
        "JobError": ("job", 2),
        "JobErrors": ("job", 2),
        "ConfigError": ("config", 2),
        "UnknownNameError": ("unknown-name", 2),
        "InputFileError": ("input-file", 2),
        "MissingError": ("missing", 3),
    }


def test_the_version_stands_in_one_place():
    assert metadata.version("memfit") == memfit.__version__
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_command_is_installed():
    found = metadata.entry_points(group="console_scripts", name="memfit")
    assert [entry.value for entry in found] == ["memfit.cli:main"]


def test_the_package_says_that_it_is_typed():
    assert resources.files("memfit").joinpath("py.typed").is_file()


def test_ignored_lint_rules_have_a_reason():
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    start = lines.index("ignore = [")
    ignored = lines[start + 1 : lines.index("]", start)]
    assert ignored
    assert all("#" in line for line in ignored)


def test_core_dependencies_stay_few():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {requirement.split(">")[0] for requirement in project["dependencies"]}
    assert names == {"click", "msgspec", "numpy", "pyyaml", "tomli-w"}
