"""Fills every field of a job: stated values, then the framework profile's defaults, the table's, and arithmetic.

Written for many jobs a second: flat values by field name, tables made once, exceptions only for faults.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from memfit.errors import JobError, JobErrors
from memfit.job.checks import ADAPTER_METHODS, faults, warnings
from memfit.job.fields import (
    BY_NAME,
    BY_SECTION,
    FIELDS,
    LAYER_SPLIT_FRAMEWORKS,
    LOW_BIT_WEIGHTS,
    SERVE_FRAMEWORKS,
    SERVE_ONLY,
    TRAIN_ONLY,
    default_of,
)
from memfit.job.types import Completed, Hardware, Job, Lora, Strategy, Task

_TASK = tuple(BY_SECTION["task"])
_STRATEGY = tuple(BY_SECTION["strategy"])
_HARDWARE = tuple(BY_SECTION["hardware"])
_LORA = tuple(BY_SECTION["task.lora"])
_MODEL = tuple(BY_SECTION["model"])
_FLAT = (*_TASK, *_STRATEGY, *_HARDWARE)
_GET_TASK, _GET_STRATEGY, _GET_HARDWARE = attrgetter(*_TASK), attrgetter(*_STRATEGY), attrgetter(*_HARDWARE)
_PATH = {name: spec.path for name, spec in BY_NAME.items()}
_FLAT_NAME = {spec.path: name for name, spec in BY_NAME.items()}
_ALL_DEFAULT = {spec.path: "default" for spec in FIELDS}
_DEFAULTS = {kind: {f.name: default_of(f, kind) for f in FIELDS if f.name in _FLAT} for kind in ("train", "serve")}
_LORA_DEFAULTS = {leaf: spec.default for leaf, spec in BY_SECTION["task.lora"].items()}
_PLAIN = frozenset({"fp32", "bf16", "fp16"})
"""Precisions in which weights are held as products are run."""
_WIDE = {"trained": "fp32", "computed": "bf16"}
"""How frozen weights follow the precision -> their dtype with a precision that is none of those."""
_NODE = 8  # GPUs of the usual server (HGX and DGX boards carry 8)
# Layers that the method "freeze" trains when it says nothing: LLaMA-Factory's freeze_trainable_layers default (2025).
_FREEZE_LAYERS = 2


def complete(job: Job, defaults: Mapping[str, Any] | None = None) -> Completed:
    """Fills every field of ``job``.

    Args:
        job: what was stated.
        defaults: a framework profile's own defaults, dotted path -> value. They stand below what was stated and above
            the table's. The key ``split`` ("tp" or "pp") says which degree takes the GPUs of a serving job.

    Returns:
        The completed job. Fields of the other task kind hold neutral values (a serving job has zero 0, optimizer
        "none", micro_batch 1); ``optional`` fields of the table may stay None.

    Raises:
        JobErrors: the values contradict each other or do not divide.
    """
    stated = {
        name: value
        for name, value in zip(
            _FLAT, _GET_TASK(job.task) + _GET_STRATEGY(job.strategy) + _GET_HARDWARE(job.hardware), strict=True
        )
        if value is not None
    }
    origins = _ALL_DEFAULT.copy()
    kind = stated.get("kind")
    if kind is None:
        kind = _kind_of(stated)
        origins["task.kind"] = "derived" if kind != "train" else "default"
    v = _DEFAULTS[kind].copy()
    v["kind"] = kind
    profile: dict[str, Any] = {}
    if defaults:
        for path, value in defaults.items():
            name = _FLAT_NAME.get(path)
            if name in v and name not in stated:
                profile[name] = value
                origins[path] = "profile"
        v.update(profile)
    v.update(stated)
    for name in stated:
        origins[_PATH[name]] = "stated"
    model = job.model
    for name in _MODEL:
        if getattr(model, name) is not None:
            origins[_PATH[name]] = "stated"
    given = {**profile, **stated}
    _method(v, given, origins)
    if v["method"] in ADAPTER_METHODS or "lora" in stated:
        v["lora"] = _lora(job.task.lora, defaults, origins)
    errors: list[JobError] = []
    if kind == "train":
        _train_degrees(v, given, origins)
        _dtypes(v, given, origins, defaults or {})
        _batches(v, given, origins, errors)
        v["context"], v["prompt"], v["output"] = v["context"] or v["seq_len"], v["prompt"] or 0, v["output"] or 0
    else:
        _serve_degrees(v, given, origins, defaults)
        _serve_lengths(v, given, origins)
        v["micro_batch"], v["grad_accum"] = v["micro_batch"] or 1, v["grad_accum"] or 1
        v["global_batch"] = v["global_batch"] or v["dp"]
    if v["dp_shard"] is None:
        v["dp_shard"] = v["dp"]
        origins["strategy.dp_shard"] = "derived"
    if v["gpus_per_node"] is None:
        v["gpus_per_node"] = min(v["gpus"], _NODE)
        origins["hardware.gpus_per_node"] = "derived"
    _pipeline(v, given, origins)
    errors += faults(v)
    if errors:
        raise JobErrors(_once(errors))
    return Completed(
        job=Job(
            schema=job.schema,
            model=model,
            task=Task(**{name: v[name] for name in _TASK}),
            strategy=Strategy(**{name: v[name] for name in _STRATEGY}),
            hardware=Hardware(**{name: v[name] for name in _HARDWARE}),
        ),
        origins=origins,
        warnings=warnings(v, stated),
        values=v,
    )


def _once(errors: list[JobError]) -> list[JobError]:
    """One error a path: the arithmetic and the checks may find the same fault."""
    return list({e.path: e for e in reversed(errors)}.values())[::-1]


def _kind_of(stated: Mapping[str, Any]) -> str:
    """The task kind that the stated fields speak of; training when they do not say."""
    framework = stated.get("framework")
    if framework in SERVE_FRAMEWORKS:
        return "serve"
    serve, train = not SERVE_ONLY.isdisjoint(stated), not TRAIN_ONLY.isdisjoint(stated)
    return "serve" if serve and not train else "train"


def _method(v: dict[str, Any], given: Mapping[str, Any], origins: dict[str, str]) -> None:
    if "method" not in given:
        v["method"] = "full"
        weights = v["weights"]
        if "lora" in given:
            v["method"] = "qlora" if not isinstance(weights, str) or weights in LOW_BIT_WEIGHTS else "lora"
        elif "trainable" in given:
            v["method"] = "freeze"
        if v["method"] != "full":
            origins["task.method"] = "derived"
    if v["method"] == "qlora" and "weights" not in given:
        v["weights"] = "nf4"
        origins["strategy.weights"] = "derived"
    if v["method"] == "freeze" and v["trainable"] is None:
        v["trainable"] = _FREEZE_LAYERS


def _dtypes(v: dict[str, Any], given: Mapping[str, Any], origins: dict[str, str], defaults: Mapping[str, Any]) -> None:
    """Precision and storage of frozen weights where the framework's own depend on what else the job does."""
    adapters = v["lora"] is not None
    alone = v["zero"] == 0 and not adapters and ("zero" in given or v["dp"] == 1)
    if alone and origins["strategy.precision"] != "stated" and "strategy.precision.alone" in defaults:
        v["precision"] = defaults["strategy.precision.alone"]
        origins["strategy.precision"] = "profile"
    kind = v["method"] if v["method"] in (*ADAPTER_METHODS, "freeze") else "lora" if adapters else "reference"
    own = defaults.get(f"strategy.weights.{kind}")
    if v["method"] == "full" or own is None or "weights" in given:
        return
    if own in _WIDE:
        precision = v["precision"].removesuffix("-mixed") if own == "computed" else v["precision"]
        own = precision if precision in _PLAIN else _WIDE[own]
    v["weights"] = own
    origins["strategy.weights"] = "profile"


def _lora(stated: Lora | None, defaults: Mapping[str, Any] | None, origins: dict[str, str]) -> Lora:
    values: dict[str, Any] = {}
    for leaf in _LORA:
        path = f"task.lora.{leaf}"
        value = getattr(stated, leaf) if stated is not None else None
        if value is not None:
            origins[path] = "stated"
        elif defaults and path in defaults:
            value, origins[path] = defaults[path], "profile"
        else:
            value = _LORA_DEFAULTS[leaf]
        values[leaf] = value
    return Lora(**values)


def _train_degrees(v: dict[str, Any], given: Mapping[str, Any], origins: dict[str, str]) -> None:
    """dp fills up the GPUs; without gpus, the degrees say how many."""
    if v["pp"] is None and v["pp_layers"] is not None:
        v["pp"] = len(v["pp_layers"])
        origins["strategy.pp"] = "derived"
    for name in ("tp", "pp"):
        v[name] = v[name] or 1
    model = v["tp"] * v["pp"] * v["cp"]
    if "gpus" in given and "dp" not in given:
        v["dp"] = max(1, v["gpus"] // model)  # a remainder is found by the checks
        origins["strategy.dp"] = "derived"
    elif "gpus" not in given:
        v["dp"] = v["dp"] or 1
        v["gpus"] = v["dp"] * model
        origins["hardware.gpus"] = "derived" if v["gpus"] > 1 or "dp" in given else "default"


def _serve_degrees(
    v: dict[str, Any], given: Mapping[str, Any], origins: dict[str, str], defaults: Mapping[str, Any] | None
) -> None:
    """The engine spreads over the GPUs that the stated degrees leave: by tensors, or by layers."""
    product = (v["dp"] or 1) * (v["tp"] or 1) * (v["pp"] or 1) * v["cp"]
    if "gpus" not in given:
        v["gpus"] = product
        origins["hardware.gpus"] = "derived" if product > 1 else "default"
    left = v["gpus"] // product
    if left > 1:
        split = (defaults or {}).get("split") or ("pp" if v["framework"] in LAYER_SPLIT_FRAMEWORKS else "tp")
        order = ("pp", "tp", "dp") if split == "pp" else ("tp", "dp", "pp")
        free = next((name for name in order if name not in given), None)
        if free is not None:
            v[free] = left
            origins[f"strategy.{free}"] = "derived"
    for name in ("dp", "tp", "pp"):
        v[name] = v[name] or 1


def _serve_lengths(v: dict[str, Any], given: Mapping[str, Any], origins: dict[str, str]) -> None:
    """context, prompt and output from those that are stated."""
    prompt, output = v["prompt"], v["output"]
    if "context" not in given and (prompt or output):
        if prompt is not None and output is not None:
            v["context"] = prompt + output
        else:
            v["context"] = max(v["context"], prompt or 0, output or 0)
        origins["task.context"] = "derived"
    if output is None:
        v["output"] = v["context"] - prompt if prompt is not None and prompt <= v["context"] else 0
        origins["task.output"] = "derived"
    if prompt is None:
        v["prompt"] = max(0, v["context"] - v["output"])
        origins["task.prompt"] = "derived"


def _batches(v: dict[str, Any], given: Mapping[str, Any], origins: dict[str, str], errors: list[JobError]) -> None:
    """global_batch = micro_batch * grad_accum * dp, whichever of them is missing."""
    dp = v["dp"]
    total, micro, accum = given.get("global_batch"), given.get("micro_batch"), given.get("grad_accum")
    if total is None:
        v["micro_batch"], v["grad_accum"] = micro or 1, accum or 1
        v["global_batch"] = v["micro_batch"] * v["grad_accum"] * dp
        origins["task.global_batch"] = "derived"
        return
    if accum is not None and origins["strategy.grad_accum"] == "profile":
        accum = None  # a profile's defaults give way to the stated global batch
    if micro is None and accum is not None:
        v["micro_batch"] = _share(total, accum * dp, f"grad_accum {accum} * dp {dp}", errors)
        origins["strategy.micro_batch"] = "derived"
    elif accum is None:
        if micro is None:
            micro = v["micro_batch"] = 1
        elif origins["strategy.micro_batch"] == "profile" and total % (micro * dp):
            micro = v["micro_batch"] = 1
            origins["strategy.micro_batch"] = "derived"
        v["grad_accum"] = _share(total, micro * dp, f"micro_batch {micro} * dp {dp}", errors)
        origins["strategy.grad_accum"] = "derived"


def _share(total: int, parts: int, words: str, errors: list[JobError]) -> int:
    if total % parts:
        up = -(-total // parts) * parts
        down = total // parts * parts
        hint = f"global_batch = {up} would do" if not down else f"global_batch = {down} or {up} would do"
        message = f"{total} is not a multiple of {words} = {parts}"
        errors.append(JobError("task.global_batch", message, value=total, bound=str(parts), hint=hint))
    return max(1, total // parts)


def _pipeline(v: dict[str, Any], given: Mapping[str, Any], origins: dict[str, str]) -> None:
    schedule, chunks = v["pp_schedule"], v["virtual_pp"]
    if schedule is None:
        interleaved = bool(chunks and chunks > 1 and v["pp"] > 1)
        v["pp_schedule"] = "interleaved" if interleaved else "1f1b"
        if interleaved:
            origins["strategy.pp_schedule"] = "derived"
    if chunks is None:
        interleaved = schedule == "interleaved" and v["pp"] > 1
        v["virtual_pp"] = 2 if interleaved else 1  # the least that interleaves
        if interleaved:
            origins["strategy.virtual_pp"] = "derived"
