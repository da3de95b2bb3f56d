"""Writes what the documentation does not write by hand: tables from the data files, and what each example prints.

    python docs/generate.py [--check] [PAGE ...]

Three kinds of places are rewritten, in README and in every page here:

- the text between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->`` is what function NAME of ``docs/tables.py``
  returns;
- a ``console`` block: each line ``$ memfit ...`` is run in the root of the repository and its output put below.
  ``$ cat FILE`` works too, and ``| head -n N`` or ``| cut -c 1-N`` shortens;
- a ``python`` block is run, the blocks of a page in order; a ``text`` block right after it holds what it printed.

``<!-- not run: REASON -->`` before a block leaves it alone. ``--check`` writes nothing and fails when a page is not
current.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
WIDTH = 100
"""Columns of the terminal that the examples pretend to have."""

_REGION = re.compile(r"(<!-- begin: ([a-z_]+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NOT_RUN = re.compile(r"<!-- not run: .+ -->\s*\Z")
_HEAD = re.compile(r"\s*\|\s*head -n (\d+)$")
_CUT = re.compile(r"\s*\|\s*cut -c 1-(\d+)$")


def pages() -> list[Path]:
    """README in both languages and the pages of the documentation."""
    return [ROOT / "README.md", ROOT / "README.zh.md", *sorted(DOCS.glob("*.md"))]


def rendered(page: Path) -> str:
    """The text that a page should have.

    Raises:
        RuntimeError: an example of the page failed.
    """
    with _at_root():
        return _examples(_tables(page.read_text(encoding="utf-8")), page.name)


def _tables(text: str) -> str:
    sys.path.insert(0, str(DOCS))
    try:
        import tables
    finally:
        sys.path.remove(str(DOCS))
    return _REGION.sub(lambda m: f"{m[1]}{getattr(tables, m[2])().strip()}\n{m[3]}", text)


def _examples(text: str, name: str) -> str:
    out: list[str] = []
    at = 0
    printed: str | None = None  # what the last python block printed, until its text block comes
    namespace: dict[str, Any] = {"__name__": f"docs:{name}"}
    for block in _FENCE.finditer(text):
        between = text[at : block.start()]
        out.append(between)
        body = block[2]
        if _NOT_RUN.search(between):
            printed = None
        elif block[1] == "console":
            body, printed = console(body), None
        elif block[1] == "python":
            printed = run_python(body, namespace, name)
        elif block[1] == "text" and printed is not None and not between.strip():
            body, printed = printed, None
        else:
            printed = None
        out.append(f"```{block[1]}\n{body}```")
        at = block.end()
    return "".join([*out, text[at:]])


def console(body: str) -> str:
    """A console block with its commands run and the outputs renewed."""
    out = []
    for command in commands(body):
        out.append(command)
        told = run_command(command.removeprefix("$ ").replace("\\\n", " "))
        out.append(told.rstrip("\n"))
    return "\n".join(part for part in out if part) + "\n"


def commands(body: str) -> Iterator[str]:
    """The commands of a console block as they stand there, continued lines included."""
    lines = iter(body.splitlines())
    for line in lines:
        if line.startswith("$ "):
            while line.endswith("\\"):
                line += "\n" + next(lines)
            yield line


def run_command(command: str) -> str:
    """What a command line prints, errors included.

    Raises:
        RuntimeError: not a command that documentation may show, or memfit itself broke.
    """
    head, cut = _HEAD.search(command), _CUT.search(command)
    shortened = head or cut
    program, *arguments = shlex.split(command[: shortened.start()] if shortened else command, comments=True)
    if program == "cat":
        told = "".join(Path(a).read_text(encoding="utf-8") for a in arguments)
    elif program == "memfit":
        told = _memfit(arguments)
    else:
        msg = f"a console block can run memfit and cat, not: {command}"
        raise RuntimeError(msg)
    lines = [line.rstrip() for line in told.splitlines()]
    if head and len(lines) > int(head[1]):
        lines = [*lines[: int(head[1])], "..."]
    if cut:
        lines = [line[: int(cut[1])] for line in lines]
    return "\n".join(lines)


def _memfit(arguments: list[str]) -> str:
    from click.testing import CliRunner

    from memfit.cli.app import app

    terminal = {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb", "FORCE_COLOR": None}
    result = CliRunner().invoke(app, arguments, env=terminal, prog_name="memfit")
    if result.exit_code not in (0, 1, 2, 3) or not isinstance(result.exception, SystemExit | None):
        msg = f"`memfit {shlex.join(arguments)}` broke with exit code {result.exit_code}: {result.exception!r}\n"
        raise RuntimeError(msg + result.output)
    return result.output


def run_python(body: str, namespace: dict[str, Any], name: str) -> str:
    """What a piece of Python prints."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(compile(body, f"<example in {name}>", "exec"), namespace)
    return told.getvalue()


@contextlib.contextmanager
def _at_root() -> Iterator[None]:
    """Examples run in the root of the repository, whatever runs this."""
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


def main(arguments: Iterable[str]) -> int:
    """Rewrite the pages that are not current, or with --check say which."""
    given = list(arguments)
    check = "--check" in given
    chosen = [Path(a).resolve() for a in given if a != "--check"] or pages()
    stale = 0
    for page in chosen:
        old, new = page.read_text(encoding="utf-8"), rendered(page)
        if old == new:
            continue
        stale += 1
        if check:
            print(
                *difflib.unified_diff(old.splitlines(), new.splitlines(), page.name, "current", lineterm=""), sep="\n"
            )
        else:
            page.write_text(new, encoding="utf-8")
            print(f"rewrote {page.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
