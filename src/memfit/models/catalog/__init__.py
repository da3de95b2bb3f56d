"""The catalog: popular models by name, as data.

Each ``*.json`` file beside this module holds one publisher's models: the keys of the public ``config.json`` that shape
the model, the exact parameter count and where it comes from. A name is found however people write it: the catalog name,
a hub id, an ollama tag, other spelling or case, with or without ``-instruct``, ``-chat``, ``-it`` and the like.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache
from heapq import nlargest
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec

__all__ = ["Entry", "lookup", "names", "nearest", "version"]

#: Longer names are not looked at: no model is called so, and the comparison time grows with the length.
_MAX_NAME = 160

#: The address of a model's page, with its hub id.
_PAGE = re.compile(r"^(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/?$")

#: A known name inside another one is there by more than chance when it has a size and this many characters.
_SIZE = re.compile(r"\d[bm]")
_LEAST_INSIDE = 5

#: Endings that name a fine-tune or a file layout of the same shape.
_SUFFIX = re.compile(r"[-_: ](?:instruct|chat|base|it|pt|hf|latest)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One model of the catalog.

    Attributes:
        name: canonical name, kebab-case.
        aliases: hub ids, tags and short forms that mean a model of the same shape.
        repo: hub id of the configuration.
        config: the keys of ``config.json`` that matter for shape and memory; shared, so copy it before a change.
        params: trainable parameters, a tied head counted once, multi-token-prediction layers left out.
        params_source: where ``params`` comes from.
        published: a publicly stated total (model card, weight files), None when none is recorded here.
        published_note: what makes ``published`` differ from ``params``, empty when nothing does.
        source: where ``config`` comes from.
        vendor: who published the model.
        date: year and month of the entry.
    """

    name: str
    aliases: tuple[str, ...] = ()
    repo: str
    config: dict[str, Any] = field(hash=False, compare=False)
    params: int
    params_source: str
    published: int | None = None
    published_note: str = ""
    source: str
    vendor: str
    date: str


class _Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model as the data file writes it."""

    name: str
    repo: str
    params: int
    params_source: str
    source: str
    config: dict[str, Any]
    aliases: tuple[str, ...] = ()
    published: int | None = None
    published_note: str = ""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One data file."""

    vendor: str
    date: str
    models: list[_Model]


class _Index(NamedTuple):
    """The catalog in memory: entries by name, and by each spelling, squeezed."""

    entries: dict[str, Entry]
    spellings: dict[str, Entry]
    version: str


def lookup(name: str) -> Entry | None:
    """The catalog's entry for a name as people write it, or None.

    Args:
        name: catalog name, hub id (``owner/model``), ollama tag or a loose spelling such as ``Llama 3.1 8B``, or
            the address of a model's page. A hub id of an owner that the catalog does not list is found by its model
            part, as mirrors keep the name.

    Returns:
        The entry, or None for an unknown name and for a quantised copy (``...-AWQ``), whose storage differs.
    """
    text = _PAGE.sub(r"\1", name.strip().lower()) if len(name) <= _MAX_NAME else ""
    if not text or text.startswith((".", "/", "~")) or text.count("/") > 1:
        return None
    spellings = _index().spellings
    text = text.rsplit("/", 1)[-1]
    while True:
        entry = spellings.get(_squeeze(text))
        if entry is not None:
            return entry
        shorter = _SUFFIX.sub("", text)
        if shorter == text:
            return None
        text = shorter


def names() -> tuple[str, ...]:
    """The canonical names, sorted."""
    return tuple(sorted(_index().entries))


def nearest(name: str, limit: int = 3) -> tuple[str, ...]:
    """Canonical names of the models whose names or aliases look most like ``name``, best first.

    A name with a known one inside is taken for a fine-tune or a quantised copy of it: that one comes first.

    Args:
        name: a name that ``lookup`` does not know.
        limit: how many names at most.
    """
    target = _squeeze(name.strip().lower()[:_MAX_NAME].rstrip("/").rsplit("/", 1)[-1])
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(target)
    spellings = _index().spellings
    inside = max(
        (s for s in spellings if len(s) >= _LEAST_INSIDE and _SIZE.search(s) and s in target), key=len, default=None
    )
    best: dict[str, float] = {} if inside is None else {spellings[inside].name: 1.0}
    for spelling, entry in spellings.items():
        matcher.set_seq1(spelling)
        floor = max(0.6, best.get(entry.name, 0.0))
        # The two upper bounds are cheap and settle nearly all spellings.
        if matcher.real_quick_ratio() >= floor and matcher.quick_ratio() >= floor:
            ratio = matcher.ratio()
            if ratio >= floor:
                best[entry.name] = ratio
    # Among equals the shorter, then the alphabetically first name: the answer must not depend on file order.
    return tuple(nlargest(limit, sorted(best, key=lambda n: (len(n), n)), key=lambda n: best[n]))


def version() -> str:
    """Year and month of the newest data, e.g. ``2026-11``."""
    return _index().version


def _squeeze(text: str) -> str:
    """A lower-case spelling without separators; an underscore between digits is a decimal point (``phi-1_5``)."""
    return re.sub(r"[^a-z0-9.+]", "", re.sub(r"(?<=\d)_(?=\d)", ".", text))


@lru_cache(maxsize=1)
def _index() -> _Index:
    entries: dict[str, Entry] = {}
    spellings: dict[str, Entry] = {}
    newest = ""
    folder = files(__name__)
    for path in sorted((p for p in folder.iterdir() if p.name.endswith(".json")), key=lambda p: p.name):
        data = msgspec.json.decode(path.read_bytes(), type=_File)
        newest = max(newest, data.date)
        for model in data.models:
            fields = {name: getattr(model, name) for name in model.__struct_fields__}
            entry = Entry(**fields, vendor=data.vendor, date=data.date)
            entries[entry.name] = entry
            for spelling in (entry.name, entry.repo, *entry.aliases):
                spellings[_squeeze(spelling.lower().rsplit("/", 1)[-1])] = entry
    return _Index(entries, spellings, newest)
