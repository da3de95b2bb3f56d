"""The documentation says what the code does: examples are run, tables are current, links lead somewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import generate  # noqa: E402 - it lies beside the pages

PAGES = [page.relative_to(ROOT).as_posix() for page in generate.pages()]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^(```|:::).*?^\1", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_examples_and_tables_are_current(page):
    path = ROOT / page
    current = path.read_text(encoding="utf-8") == generate.rendered(path)
    assert current, (
        f"{page} is not current: `make generate` renews it, `python docs/generate.py --check {page}` shows what"
    )


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    path = ROOT / page
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if "://" in target or target.startswith("#"):
            continue
        assert (path.parent / target.partition("#")[0]).exists(), f"{page} links to {target}"


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    listed = {line.strip() for line in index.splitlines()}
    pages = {p.stem for p in (ROOT / "docs").glob("*.md") if not p.stem.endswith("-table")} - {"index"}
    assert pages == pages & listed


def test_both_languages_show_the_same_examples():
    english, chinese = (
        [(block[1], block[2]) for block in generate._FENCE.finditer((ROOT / name).read_text(encoding="utf-8"))]
        for name in ("README.md", "README.zh.md")
    )
    run = ("console", "python", "text")
    assert [block for block in english if block[0] in run] == [block for block in chinese if block[0] in run]
    assert sum(kind == "console" for kind, _ in english) >= 1


def test_every_folder_of_the_package_is_in_the_tree_of_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    folders = {p.parent.name for p in (ROOT / "src/memfit").glob("*/__init__.py")}
    assert not {name for name in folders if f"{name}/" not in text}


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in [*PAGES, "CONTRIBUTING.md"]:
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, f"{page} names {named - targets}"


def test_a_broken_example_is_noticed():
    with pytest.raises(RuntimeError, match="can run memfit and cat"):
        generate.console("$ rm -rf somewhere\n")
    stale = "```console\n$ memfit --version\nmemfit of another time\n```\n"
    assert generate._examples(stale, "page") != stale
    with pytest.raises(ZeroDivisionError):
        generate._examples("```python\n1 / 0\n```\n", "page")


def test_what_is_said_not_to_run_does_not_run():
    text = "<!-- not run: needs a GPU -->\n```python\n1 / 0\n```\n"
    assert generate._examples(text, "page") == text


@pytest.mark.slow
def test_examples_that_need_torch_run():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    mark = "<!-- not run: needs torch -->\n"
    found = [(page, part) for page in PAGES for part in (ROOT / page).read_text(encoding="utf-8").split(mark)[1:]]
    assert found
    for page, part in found:
        block = generate._FENCE.match(part)
        assert block
        assert generate.run_python(block[2], {"__name__": "docs"}, page).strip()
