"""How results are worded: probabilities, sizes, values, and what a job is in one line."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from memfit.ledger import PROVENANCES
from memfit.report.page import clean
from memfit.units import GIB, format_count

if TYPE_CHECKING:
    from memfit.formula.estimate import Estimate
    from memfit.formula.resolve import Resolved

LETTERS: Mapping[str, str] = {name: name[0] for name in PROVENANCES}
"""One letter for each origin of a number."""

MARKS: Mapping[str, str] = {
    "parameters": "P",
    "gradients": "G",
    "optimizer": "O",
    "activations": "A",
    "logits": "L",
    "workspace": "W",
    "communication": "C",
    "kv_cache": "K",
    "state": "S",
    "slack": "s",
    "runtime": "R",
    "others": "X",
    "unaccounted": "?",
}
"""One letter for each component, where a bar is made of letters."""


def gib(num_bytes: float) -> str:
    """Bytes in GiB with two decimals, without the unit; a size too small for them is ``<0.01``."""
    if 0 < abs(num_bytes) < 0.005 * GIB:
        return "<0.01" if num_bytes > 0 else ">-0.01"
    return f"{num_bytes / GIB:.2f}"


def signed_gib(num_bytes: float) -> str:
    """A difference in GiB with its sign; no difference is ``0.00``."""
    return "0.00" if abs(num_bytes) < 0.005 * GIB else f"{num_bytes / GIB:+.2f}"


def percent(p: float) -> str:
    """A probability in words that do not claim more than is known."""
    if p < 0.001:
        return "<0.1%"
    if p > 0.999:
        return ">99.9%"
    return f"{100 * p:.1f}%" if p < 0.1 or p > 0.9 else f"{100 * p:.0f}%"


def value(item: Any) -> str:
    """A job value as the command line takes it."""
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, Mapping):
        return ",".join(f"{clean(k)}={value(v)}" for k, v in item.items())
    if isinstance(item, list | tuple):
        return ",".join(value(i) for i in item) or "none"
    if isinstance(item, float):
        return f"{item:g}"
    return clean(item)


def split(layers: Sequence[int]) -> str:
    """The layers of the pipeline ranks, equal neighbours together: ``7 | 8 x 14 | 7``."""
    runs = [(count, len(list(same))) for count, same in groupby(layers)]
    return " | ".join(f"{count} x {number}" if number > 1 else str(count) for count, number in runs)


def uneven(resolved: Resolved) -> tuple[int, ...] | None:
    """Layers of the pipeline ranks of a training job, where they are stated or differ."""
    from memfit.formula.training import rank_layers

    v = resolved.values
    if v["pp"] == 1 or v["pp_schedule"] == "dualpipe":  # whose ranks have a stage of either direction
        return v["pp_layers"] if v["pp"] > 1 else None
    layers = rank_layers(resolved)
    return layers if v["pp_layers"] or len(set(layers)) > 1 else None


def legend(letters: set[str]) -> str:
    """What the given provenance letters mean."""
    return ", ".join(f"{letter} {name}" for name, letter in LETTERS.items() if letter in letters)


def cards(resolved: Resolved) -> str:
    """The cards of a job, e.g. ``8 x NVIDIA H100 80GB HBM3``; empty when neither a card nor its memory is known."""
    count = resolved.values["gpus"]
    if resolved.gpu is not None:
        title = clean(resolved.gpu.title)
    elif resolved.capacity_bytes is not None:
        title = f"GPU of {gib(resolved.capacity_bytes)} GiB"
    else:
        return ""
    return title if count == 1 else f"{count} x {title}"


def job_line(estimate: Estimate, without: Collection[str] = ()) -> str:
    """The model and the settings that decide most, in one line.

    Args:
        estimate: whose job.
        without: names of fields that are left out.
    """
    v = estimate.resolved.values
    arch = estimate.resolved.arch
    settings = _serving(v) if v["kind"] == "serve" else _training({**v, "pp_layers": uneven(estimate.resolved)})
    words = ", ".join(text for name, text in settings if name not in without)
    if "model" in without:
        return words
    name = clean(estimate.job.model.name or "the given configuration")
    size = f"{format_count(arch.num_params)} parameters"
    if arch.active_params != arch.num_params:
        size += f", {format_count(arch.active_params)} active"
    return f"{name} ({size}): {words}"


_METHODS = {
    "full": "full training",
    "lora": "LoRA",
    "qlora": "QLoRA",
    "dora": "DoRA",
    "freeze": "training of a part",
    "dpo": "DPO",
    "grpo": "GRPO",
}


def _training(v: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "method", f"{_METHODS.get(v['method'], v['method'])} with {v['framework']}"
    if v["method"] == "qlora":
        yield "weights", f"weights {value(v['weights'])}"
    yield "precision", value(v["precision"])
    yield "optimizer", value(v["optimizer"])
    yield "seq_len", f"seq_len {v['seq_len']}"
    yield "micro_batch", f"micro_batch {v['micro_batch']}"
    if v["checkpointing"] != "none":
        yield "checkpointing", f"checkpointing {value(v['checkpointing'])}"
    yield from _degrees(v)


def _serving(v: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "framework", f"serving with {v['framework']}"
    for name in ("weights", "kv", "context", "concurrency"):
        yield name, f"{name} {value(v[name])}"
    yield from _degrees(v)


def _degrees(v: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("dp", "tp", "pp", "cp", "ep"):
        if v[name] > 1:
            yield name, f"{name} {v[name]}"
        if name == "pp" and v["pp_layers"] and v["kind"] == "train":
            yield "pp", f"layers {split(v['pp_layers'])}"
    if v["zero"] and v["kind"] == "train":
        yield "zero", f"zero {v['zero']}"


def moment(estimate: Estimate) -> str:
    """When the peak stands: the moment, and its phase where the moment does not name it."""
    what, phase = clean(estimate.ledger.moment), clean(estimate.peak_phase)
    return what if phase in what else f"{what} ({phase})"


def seconds(value: float) -> str:
    """A duration with three digits: ``18.4 ms``, ``1.23 s``, ``95.0 s``."""
    if value < 1e-3:
        return f"{value * 1e6:.3g} us"
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.1f} s" if value >= 100 else f"{value:.3g} s"


def per_second(value: float) -> str:
    """A rate in whole numbers, with three digits where it is small: ``1,684``, ``45.3``, ``1.49``."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
