"""What is imported when: packages in one direction, heavy libraries only when they are needed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src/memfit"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONTRACT = SETTINGS["tool"]["importlinter"]["contracts"][0]
LEVELS = [{name.strip() for name in level.split(":")} for level in CONTRACT["layers"]]
ALLOWED = {tuple(edge.split(" -> ")) for edge in CONTRACT.get("ignore_imports", [])}
HEAVY = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy"}
# Modules that are themselves imported only when torch is wanted; memfit.trace loads them lazily.
TORCH_MODULES = "memfit.trace."


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, *, at_import_time: bool) -> Iterator[str]:
    """Modules that a file imports: anywhere, or only what runs when it is imported itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif _is_skipped(node, at_import_time):
            continue
        else:
            yield from imports(node, at_import_time=at_import_time)


def _is_skipped(node: ast.AST, at_import_time: bool) -> bool:
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


# What is injected into the scripts of `memfit dryrun` runs there without memfit, under a name of its own.
FILES = {
    module_of(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
    if "mirage/run/hook" not in path.as_posix()
}


def level_of(module: str) -> int | None:
    for index, level in enumerate(LEVELS):
        if any(module == name or module.startswith(f"{name}.") for name in level):
            return index
    return None


def test_every_package_has_its_layer():
    parts = {f"memfit.{name.split('.')[1]}" for name in FILES if name.count(".")}
    assert parts - {"memfit.__main__"} == set().union(*LEVELS)


def test_imports_go_one_way():
    wrong = []
    for module, tree in FILES.items():
        own = level_of(module)
        for target in imports(tree, at_import_time=False):
            other = level_of(target)
            if own is None or other is None or other > own:
                continue
            same = target.split(".")[:2] == module.split(".")[:2]
            allowed = any(module == a and (target == b or target.startswith(f"{b}.")) for a, b in ALLOWED)
            if not same and not allowed:
                wrong.append(f"{module} imports {target}")
    assert not wrong


def test_heavy_libraries_are_imported_inside_functions():
    wrong = [
        f"{module} imports {target}"
        for module, tree in FILES.items()
        if not module.startswith(TORCH_MODULES)
        for target in imports(tree, at_import_time=True)
        if target.split(".")[0] in HEAVY
    ]
    assert not wrong


def loaded_by(code: str) -> set[str]:
    """Top-level packages that a piece of code loads in a fresh interpreter, beyond what Python itself does."""
    tell = "import json as _j, sys as _s; _b = set(_s.modules)\n"
    end = "\n_s.stdout.write('\\n' + _j.dumps(sorted({m.split('.')[0] for m in set(_s.modules) - _b})))"
    done = subprocess.run([sys.executable, "-c", tell + code + end], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import memfit", HEAVY | {"rich", "click", "yaml", "msgspec", "tomllib"}),
        ("import memfit.cli", HEAVY | {"rich", "pygments", "yaml", "msgspec"}),
        ("import memfit.trace", HEAVY),
        ("import memfit.allocator", HEAVY | {"rich", "click"}),
        (
            "import memfit; memfit.estimate(model='llama-3.1-8b', gpu='8xh100', zero=3)",
            HEAVY | {"rich", "click", "yaml"},
        ),
    ],
)
def test_what_is_not_needed_is_not_loaded(code, unwanted):
    assert not loaded_by(code) & unwanted


def test_help_loads_little():
    """The start-up budget, counted in modules: time would measure the machine."""
    code = "import memfit.cli\ntry:\n    memfit.cli.main(['--help'])\nexcept SystemExit:\n    pass"
    assert not loaded_by(code) & (HEAVY | {"rich", "pygments", "yaml", "msgspec"})
    count = "import sys; b = len(sys.modules)\n" + code + "\nprint(len(sys.modules) - b)"
    done = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) <= 160
