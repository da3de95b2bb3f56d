"""Datasets that are not there: rows of words, long enough that whatever the script cuts or packs them to is full."""

from __future__ import annotations

from typing import Any

from . import when
from .settings import SETTINGS, note

WORDS = 8192
"""Words of a row; a tokenizer makes one token or more of each."""
ROWS = 64
_SPLITS = ("train", "validation", "test")


def install() -> None:
    """Answer for ``datasets``."""
    when.imported("datasets.load", _datasets)


def row(kind: str) -> dict[str, Any]:
    """One row of a kind: ``text``, ``chat``, ``prompt`` or ``tokens``."""
    text = " ".join(f"w{i % 1000}" for i in range(WORDS))
    if kind == "chat":
        return {"messages": [{"role": "user", "content": text[:200]}, {"role": "assistant", "content": text}]}
    if kind == "prompt":
        return {"prompt": text[:200], "completion": text}
    if kind == "tokens":
        tokens = [i % 1000 for i in range(WORDS)]
        return {"input_ids": tokens, "attention_mask": [1] * WORDS, "labels": tokens}
    return {"text": text}


def _datasets(module: Any) -> None:
    def load_dataset(path: str, *_args: Any, split: Any = None, streaming: bool = False, **_kwargs: Any) -> Any:
        import datasets

        note(f"dataset `{path}`: {ROWS} made-up rows of {WORDS} words ({SETTINGS.fake_data})")
        made = datasets.Dataset.from_list([row(SETTINGS.fake_data)] * ROWS)
        found: Any = made.to_iterable_dataset() if streaming else made
        if split is None:
            kind = datasets.IterableDatasetDict if streaming else datasets.DatasetDict
            return kind(dict.fromkeys(_SPLITS, found))
        return [found for _ in split] if isinstance(split, (list, tuple)) else found

    module.load_dataset = load_dataset
