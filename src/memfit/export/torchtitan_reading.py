"""torchtitan's configurations back into a job: 0.3's Python modules (parsed, not run) and earlier versions' TOML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from memfit.export.modules import CALL, Module
from memfit.export.reading import Found, Keys, Source
from memfit.formula.schedule import split_layers, split_ranks

FLAVORS: Mapping[str, tuple[str, str]] = {
    "llama-3.2-1b": ("llama3", "1B"),
    "llama-3.2-3b": ("llama3", "3B"),
    "llama-3.1-8b": ("llama3", "8B"),
    "llama-3.3-70b": ("llama3", "70B"),
    "llama-3.1-70b": ("llama3", "70B"),
    "llama-3.1-405b": ("llama3", "405B"),
    "qwen3-0.6b": ("qwen3", "0.6B"),
    "qwen3-1.7b": ("qwen3", "1.7B"),
    "qwen3-4b": ("qwen3", "4B"),
    "qwen3-8b": ("qwen3", "8B"),
    "qwen3-14b": ("qwen3", "14B"),
    "qwen3-32b": ("qwen3", "32B"),
    "qwen3-30b-a3b": ("qwen3", "30B-A3B"),
    "qwen3-235b-a22b": ("qwen3", "235B-A22B"),
    "deepseek-v2-lite": ("deepseek_v3", "16B"),
    "deepseek-r1": ("deepseek_v3", "671B"),
    "deepseek-v3.1": ("deepseek_v3", "671B"),
    "deepseek-v3": ("deepseek_v3", "671B"),
    "gpt-oss-20b": ("gpt_oss", "20b"),
    "gpt-oss-120b": ("gpt_oss", "120b"),
}
"""Catalog name -> (module of torchtitan.models, flavor), as torchtitan 0.3 registers them. Of several models with one
architecture the last is what a flavor reads back as."""

ENDS = (1, 1)
"""Its defaults of pipeline_parallel_first_stage_less_layers and pipeline_parallel_last_stage_less_layers."""

_MODELS = {flavor: name for name, flavor in FLAVORS.items()}
_SCHEDULES = {
    "gpipe": "gpipe",
    "1f1b": "1f1b",
    "interleaved1f1b": "interleaved",
    "interleavedzerobubble": "zero-bubble",
    "zbvzerobubble": "zero-bubble",
    "dualpipev": "dualpipe",
    "loopedbfs": "interleaved",
}
_FOLDED = frozenset({"zbvzerobubble", "dualpipev"})
"""Schedules whose ranks hold a stage and its mirror image, not every pp-th stage."""
_LAYER = re.compile(r"layers\.([0-9]{1,5})")
_MOST_LAYERS = 1 << 16
_PRECISION = {"Float8LinearConverter": "fp8", "MXFP8LinearConverter": "mxfp8", "NVFP4LinearConverter": "nvfp4"}
_OPTIMIZERS = {"adamw": "adamw", "adam": "adamw", "distmuon": "muon"}


def read(source: Source) -> Found:
    """Fields from a module's function that returns ``Trainer.Config``, or from a TOML of torchtitan before 0.3."""
    found = Found()
    tree = source.tree
    if isinstance(tree, Module):
        _module(tree, found)
    else:
        _toml(tree, found)
    found.set("framework", "torchtitan")
    return found


def _module(tree: Module, found: Found) -> None:
    functions = {name: table for name, table in tree.functions.items() if "training" in table}
    if not functions:
        found.warn("no function of the module returns a Trainer.Config that is written out")
        return
    name, table = next(reversed(functions.items()))
    if len(functions) > 1:
        found.warn(f"of {len(functions)} functions `{name}` is read")
    spec = table.get("model_spec")
    spec = spec if isinstance(spec, Mapping) else {}
    home = str(tree.imports.get(str(spec.get(CALL)), "")).split(".")
    _model(home[2] if len(home) > 2 else "", spec.get("0") or spec.get("flavor"), found)
    keys = Keys({key: value for key, value in table.items() if key != CALL}, found)
    pure = _training(keys.table("training"), found)
    converted = [item for item in spec.get("converters") or [] if isinstance(item, Mapping)]
    _converters(converted, found, pure)
    parallelism = keys.table("parallelism")
    _parallelism(parallelism, found, always=True)
    policy = keys.take("activation_checkpoint")
    words = {"SelectiveAC.Config": "selective", "FullAC.Config": "full"}
    kind = policy.get(CALL) if isinstance(policy, Mapping) else None
    if kind is not None and kind not in words:
        found.warn(f"`activation_checkpoint` = {kind} was not understood")
    default = "none" if "activation_checkpoint" in table else "selective"
    found.set("checkpointing", words.get(str(kind), default if policy is None else None))
    _loss(keys, found)
    optimizer = keys.take("optimizer")
    called = optimizer.get(CALL) if isinstance(optimizer, Mapping) else "default_adamw"
    found.set("optimizer", "adamw" if called == "default_adamw" else None)
    if called != "default_adamw":
        found.warn(f"`optimizer` = {called} was not understood")
    for key in ("model_spec", "hf_assets_path", "dump_folder"):
        keys.take(key)
    keys.rest("torchtitan-sections")


def _model(module: str, flavor: Any, found: Found) -> None:
    name = _MODELS.get((module, str(flavor)))
    found.set("name", name)
    if name is None:
        found.warn(f"the model {module} {flavor} has no counterpart: state model.name")


def _training(keys: Keys, found: Found) -> bool:
    """Sizes and precision; True when all is in bf16."""
    keys.take(CALL)
    found.set("micro_batch", keys.whole("local_batch_size", "batch_size") or 8)
    found.set("global_batch", keys.whole("global_batch_size"))
    found.set("seq_len", keys.whole("seq_len") or 2048)
    dtype = keys.take("dtype") or "float32"
    mixed = keys.take("mixed_precision_param") or "bfloat16"
    found.set("precision", "bf16" if dtype == "bfloat16" else "bf16-mixed" if mixed == "bfloat16" else "fp32")
    if keys.flag("enable_cpu_offload"):
        found.set("offload", ("optimizer", "parameters", "gradients"))
    compiled = keys.flag("compile")
    if compiled:
        found.set("compile", True)
        found.set("loss", "compiled")
    keys.rest("torchtitan-training")
    return str(dtype) == "bfloat16"


def _converters(converted: list[Any], found: Found, pure: bool) -> None:
    for item in converted:
        kind = str(item.get(CALL)).removesuffix(".Config")
        if kind in _PRECISION:
            found.values["strategy.precision"] = _PRECISION[kind]
        elif kind == "LoRAConverter":
            found.set("method", "lora")
            found.set("lora_rank", item.get("rank") or 8)
            found.set("lora_alpha", item.get("alpha"))
            found.set("lora_targets", "all-linear")
            found.set("weights", "bf16" if pure else "fp32")
        else:
            found.warn(f"`converters`: {kind} was not understood")


def _parallelism(keys: Keys, found: Found, *, always: bool) -> None:
    """Degrees and the pipeline.

    Args:
        keys, found: the table, and what is known.
        always: FSDP2 also runs where nothing is sharded, to cast (from 0.3 on, the versions that read no TOML).
    """
    keys.take(CALL)
    replicate = keys.whole("data_parallel_replicate_degree") or 1
    shard = keys.number("data_parallel_shard_degree")
    tp, pp = keys.whole("tensor_parallel_degree") or 1, keys.whole("pipeline_parallel_degree") or 1
    cp, ep = keys.whole("context_parallel_degree") or 1, keys.whole("expert_parallel_degree") or 1
    sequence = keys.flag("enable_sequence_parallel")
    folded = str(keys.peek("pipeline_parallel_schedule")).lower() in _FOLDED
    schedule = keys.word(_SCHEDULES, "pipeline_parallel_schedule")
    part = keys.whole("pipeline_parallel_microbatch_size") or 1
    layers = keys.whole("pipeline_parallel_layers_per_stage")
    ends = (
        _less(keys, "pipeline_parallel_first_stage_less_layers", ENDS[0]),
        _less(keys, "pipeline_parallel_last_stage_less_layers", ENDS[1]),
    )
    parts = _parts(keys, found)
    reshard = keys.take("fsdp_reshard_after_forward")
    if shard is not None and shard >= 1:
        found.set("dp", int(shard) * replicate)
    found.set("zero", 0 if shard == 1 and not always else 3)
    if shard is not None and replicate > 1 and (shard > 1 or always):
        found.set("dp_shard", int(shard))
    found.set("reshard", False if reshard == "never" and shard != 1 else None)
    found.set("tp", tp)
    found.set("pp", pp)
    found.set("cp", cp)
    found.set("ep", ep)
    found.set("sequence_parallel", (sequence is not False) if tp > 1 else None)
    if pp > 1:
        found.set("pp_schedule", schedule or "1f1b")
        local, count = found.get("micro_batch"), _layers(found)
        found.set("micro_batch", part)
        if local and local % part == 0:
            found.set("grad_accum", local // part)
        looped = found.get("pp_schedule") in ("interleaved", "zero-bubble", "dualpipe")
        if looped:
            whole = -(-(count + sum(ends)) // layers) if layers and count else 2 * pp
            found.set("virtual_pp", max(2, (len(parts) or whole) // pp))
        stages = pp * (found.get("virtual_pp") or 1)
        if ends != ENDS and not parts and stages <= count:
            parts = [stop - start for start, stop in split_layers(count, stages, ends)]
        if parts:
            _split(parts, pp, found, folded=folded)
    keys.rest("torchtitan-parallelism")


def _less(keys: Keys, key: str, own: int) -> int:
    """How many layers fewer than the rest the first or the last stage has."""
    value = keys.number(key)
    if value is None:
        return own
    if value not in range(_MOST_LAYERS):
        keys.odd(key, value)
        return own
    return int(value)


def _parts(keys: Keys, found: Found) -> list[int]:
    """Layers of each stage where they are written out; empty where they are not."""
    named, points = keys.take("module_fqns_per_model_part"), keys.take("pipeline_parallel_split_points")
    if isinstance(named, list | tuple) and all(isinstance(part, list | tuple) for part in named):
        return [sum(str(name).startswith("layers.") for name in part) for part in named]
    words = [str(point) for point in points] if isinstance(points, list | tuple) else []
    first = [int(match[1]) for word in words if (match := _LAYER.fullmatch(word))]
    if first and len(first) == len(words) and (count := _layers(found)):
        return [stop - start for start, stop in pairwise([0, *first, count])]
    if named or points:
        keys.odd("module_fqns_per_model_part" if named else "pipeline_parallel_split_points", named or points)
    return []


def _split(parts: list[int], pp: int, found: Found, *, folded: bool) -> None:
    """States the layers of the ranks."""
    if not folded and min(parts) >= 0 and len(parts) % pp == 0:
        layers = tuple(sum(parts[rank::pp]) for rank in range(pp))
        if [stop - start for start, stop in split_ranks(layers, len(parts) // pp)] == parts:
            found.set("pp_layers", layers)
            return
    found.warn("the stages hold layers in a way that `strategy.pp_layers` cannot say: torchtitan's own split is taken")


def _layers(found: Found) -> int:
    from memfit.errors import MemfitError
    from memfit.models import resolve

    try:
        return resolve(str(found.get("name")))[0].decoder.num_layers if found.get("name") else 0
    except MemfitError:
        return 0


def _loss(keys: Keys, found: Found) -> None:
    compiling = keys.table("compile")
    compiling.take(CALL)
    on = compiling.flag("enable")
    parts = compiling.take("components") or (["model", "loss"] if on else [])
    compiling.rest(also=("backend", "enable_async_tensor_parallel"))
    loss = keys.take("loss")
    chunked = isinstance(loss, Mapping) and str(loss.get(CALL)).startswith("ChunkedLossWrapper")
    found.set("compile", bool(on and "model" in parts))
    found.set("loss", "chunked" if chunked else "compiled" if on and "loss" in parts else "eager")


def _toml(tree: Mapping[str, Any], found: Found) -> None:
    keys = Keys(tree, found)
    model = keys.table("model")
    _model(str(model.take("name") or ""), model.take("flavor"), found)
    converters = model.take("converters") or []
    model.rest(also=("hf_assets_path", "tokenizer_path", "norm_type", "print_after_conversion"))
    _training(keys.table("training"), found)
    _parallelism(keys.table("parallelism", "experimental"), found, always=False)
    checkpointing = keys.table("activation_checkpoint")
    mode, option = checkpointing.take("mode") or "selective", checkpointing.take("selective_ac_option")
    every = int(option) if str(option).isdigit() else None
    found.set("checkpointing", every if mode == "selective" and every else mode)
    checkpointing.rest(also=("per_op_sac_force_recompute_mm_shapes_by_fqns", "early_stop"))
    compiling = keys.table("compile")
    if compiling.flag("enable"):
        parts = compiling.take("components") or ["model", "loss"]
        found.set("compile", "model" in parts)
        found.set("loss", "compiled" if "loss" in parts else "eager")
    compiling.rest(also=("fullgraph", "components", "backend"))
    optimizer = keys.table("optimizer")
    found.set("optimizer", optimizer.word(_OPTIMIZERS, "name") or "adamw")
    found.set("optimizer_in_backward", optimizer.flag("early_step_in_backward"))
    optimizer.everything()
    words = " ".join(map(str, converters)).lower()
    for word, precision in (("mx", "mxfp8"), ("float8", "fp8"), ("nvfp4", "nvfp4")):
        if word in words:
            found.values["strategy.precision"] = precision
    for key in ("float8", "mx", "quantize"):
        keys.table(key).everything()
    keys.rest("torchtitan-sections")
