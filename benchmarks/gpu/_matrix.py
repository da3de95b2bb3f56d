"""The cases of the matrix: ``matrix.toml`` made into job documents for one card."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GIB = 1 << 30
TIMEOUT_S = 60
KERNELS = ("gemm", "attention", "copy", "launch")
"""Kinds whose result is a table of kernels; they have no job."""
RANKS = 64
"""Ranks of a ``sharded`` case."""
LAYER_KEYS = ("num_hidden_layers", "n_layer")
OUTSIDE_SCHEMA = {
    "impl": "the optimizer's implementation",
    "backend": "the kernel of scaled_dot_product_attention",
    "allocator": "the settings of the allocator",
    "capacity": "the limit of the allocator",
}
"""Keys of a row that no field of a job states: the record is kept and not scored."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the matrix is made for: the name that memfit's catalog knows (None if it does not) and usable bytes."""

    name: str | None
    total_bytes: int

    def hardware(self, gpus: int = 1) -> dict[str, Any]:
        """The ``hardware`` table of a job."""
        known = {"gpu": self.name} if self.name else {}
        return {**known, "gpus": gpus, "memory_gib": round(self.total_bytes / GIB, 4)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement.

    Attributes:
        name: unique, stable between runs: what ``--only`` matches and what makes a run resumable.
        kind: see ``matrix.toml``.
        job: the job document; None for tables of kernels.
        settings: what a job cannot state, and what the worker needs besides.
        needs: modules without which the case is skipped.
        apart: why the record is not scored; empty when it is.
        skip: why the case does not run on this card; empty when it does.
        timeout_s: after which it is stopped.
    """

    name: str
    kind: str
    job: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    apart: str = ""
    skip: str = ""
    timeout_s: int = TIMEOUT_S


Need = Callable[[Mapping[str, Any]], "Mapping[str, float] | None"]
"""The prediction of a job: kind -> GiB with ``need`` for the whole card; None when memfit refuses the job."""


@cache
def models() -> dict[str, Any]:
    """Name -> {source, params, config}."""
    return dict(json.loads((HERE / "models.json").read_text(encoding="utf-8")))


def rows(path: Path = HERE / "matrix.toml") -> tuple[list[str], list[dict[str, Any]]]:
    """(candidates for the model "large", rows with their lists spread)."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return list(table["large"]), [one for row in table["case"] for one in _spread(row)]


def _spread(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    lists = [key for key, value in row.items() if isinstance(value, list) and key != "needs"]
    for values in itertools.product(*(row[key] for key in lists)):
        yield {**row, **dict(zip(lists, values, strict=True))}


def config_of(model: str, layers: int | None = None) -> dict[str, Any]:
    """The configuration of a model, shortened to ``layers``."""
    config = dict(models()[model]["config"])
    if layers is not None:
        for key in LAYER_KEYS:
            if key in config:
                config[key] = layers
    return config


def training_job(row: Mapping[str, Any], card: Card) -> dict[str, Any]:
    """The job of a ``train``, ``trainer`` or ``sharded`` row."""
    batch, accum = row.get("batch", 1), row.get("accum", 1)
    ranks = RANKS if row["kind"] == "sharded" else 1
    task: dict[str, Any] = {"kind": "train", "method": "full", "seq_len": row["seq"]}
    task["global_batch"] = batch * accum * ranks
    strategy: dict[str, Any] = {
        "framework": row.get("framework", "torch"),
        "precision": row.get("precision", "bf16"),
        "optimizer": row.get("optimizer", "adamw"),
        "set_to_none": True,
        "micro_batch": batch,
        "grad_accum": accum,
        "dp": ranks,
        "zero": 3 if ranks > 1 else 0,
        "checkpointing": row.get("checkpointing", "none"),
        "compile": False,
        "attention": row.get("attention", "sdpa"),
        "loss": "eager",
    }
    if "lora" in row:
        task |= {"method": "lora", "lora": {"rank": row["lora"], "targets": "all-linear"}}
        strategy["weights"] = strategy["precision"]
    return {
        "schema": 1,
        "model": {"name": row["model"], "config": config_of(row["model"], row.get("layers"))},
        "task": task,
        "strategy": strategy,
        "hardware": card.hardware(ranks),
    }


def serving_job(row: Mapping[str, Any], card: Card) -> dict[str, Any]:
    """The job of a ``generate`` row."""
    prompt, output = row["prompt"], row["output"]
    return {
        "schema": 1,
        "model": {"name": row["model"], "config": config_of(row["model"])},
        "task": {
            "kind": "serve",
            "context": prompt + output,
            "concurrency": row.get("batch", 1),
            "prompt": prompt,
            "output": output,
        },
        "strategy": {"framework": "transformers", "weights": "bf16", "kv": "bf16", "attention": "sdpa"},
        "hardware": card.hardware(),
    }


def _name(row: Mapping[str, Any]) -> str:
    kind = row["kind"]
    if "model" not in row:
        return str(kind)
    layers = f"-{row['layers']}layers" if "layers" in row else ""
    parts = [kind, row["model"] + layers]
    if kind == "generate":
        return "/".join((*parts, f"p{row['prompt']}o{row['output']}b{row.get('batch', 1)}"))
    size = f"s{row['seq']}b{row.get('batch', 1)}" + (f"x{row['accum']}" if row.get("accum", 1) > 1 else "")
    shape = f"{row.get('precision', 'bf16')}/{row.get('checkpointing', 'none')}/{size}"
    # "torch" is the plain loop, so only other frameworks are spelt out; the Trainer says so by its kind
    framework = row.get("framework", "torch") if kind == "train" else "torch"
    plain = {"optimizer": "adamw", "attention": "sdpa"}
    words = [framework] if framework != "torch" else []
    words += [str(row[key]) for key in plain if row.get(key, plain[key]) != plain[key]]
    words += [f"{key}-{row[key]}" for key in ("lora", "impl", "backend", "capacity", "edge") if key in row]
    words += [row["allocator"].replace(":", "-").replace("_", "-")] if "allocator" in row else []
    words += ["snapshot"] if row.get("snapshot") else []
    return "/".join((*parts, shape, *words))


def matrix(card: Card, need: Need) -> list[Case]:
    """All cases for a card, most valuable first; those that cannot fit carry the reason.

    Args:
        card: the card.
        need: predicts a job; decides which model "large" is and which cases are left out.
    """
    large, table = rows()
    chosen = _large(large, card, need)
    found: dict[str, Case] = {}
    for row in table:
        named = {**row, "model": chosen} if row.get("model") == "large" else row
        case = _case(named, card, need)
        found.setdefault(case.name, case)
    return list(found.values())


def _large(candidates: list[str], card: Card, need: Need) -> str:
    for name in candidates:
        job = training_job({"kind": "train", "model": name, "seq": 4096}, card)
        predicted = need(job)
        if predicted and predicted["need"] * GIB < 0.95 * card.total_bytes:
            return name
    return candidates[-1]


def _case(row: Mapping[str, Any], card: Card, need: Need) -> Case:
    kind = row["kind"]
    name, timeout = _name(row), int(row.get("timeout", TIMEOUT_S))
    needs = tuple(row.get("needs", ()))
    if "model" not in row:
        return Case(name=name, kind=kind, timeout_s=timeout, needs=needs)
    if "edge" in row:
        row = {**row, "batch": _edge_batch(row, card, need)}
    job = serving_job(row, card) if kind == "generate" else training_job(row, card)
    settings = {key: row[key] for key in (*OUTSIDE_SCHEMA, "snapshot") if key in row}
    apart = "; ".join(f"no field of a job states {what}" for key, what in OUTSIDE_SCHEMA.items() if key in row)
    predicted = need(job)
    skip = ""
    if predicted is not None:
        if "capacity" in row:
            settings["limit_gib"] = row["capacity"] * predicted["allocated"]
        share = predicted["need"] * GIB / card.total_bytes
        if share > 1.05 and "edge" not in row:
            skip = f"memfit expects {predicted['need']:.1f} GiB on a card of {card.total_bytes / GIB:.1f}"
    return Case(
        name=name, kind=kind, job=job, settings=settings, needs=needs, apart=apart, skip=skip, timeout_s=timeout
    )


def _edge_batch(row: Mapping[str, Any], card: Card, need: Need) -> int:
    """The batch whose predicted need comes closest to the stated share of the card."""

    def distance(batch: int) -> float:
        predicted = need(training_job({**row, "batch": batch}, card))
        return abs(predicted["need"] * GIB / card.total_bytes - row["edge"]) if predicted else float("inf")

    return min(range(1, 65), key=distance)
