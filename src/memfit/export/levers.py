"""The levers of a training job, and the rule that no export drops one silently.

A target declares, for each lever, which values it can write (``written``). A lever that it does not declare may only
have its neutral value: the one at which it does nothing. Everything else is an error that names the lever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from memfit.errors import JobError
from memfit.job import BY_NAME, BY_PATH, FIELDS, Field
from memfit.job.checks import ADAPTER_METHODS

LEVERS: tuple[Field, ...] = tuple(f for f in FIELDS if f.kind != "serve" and f.type != "lora")
"""Every field that a training job has."""

FACTS = frozenset(
    {
        "task.kind",  # exports are of training jobs: checked before
        "task.global_batch",  # micro_batch * grad_accum * dp, which are levers
        "strategy.framework",  # the target is the framework
        "strategy.framework_version",
        "model.extra",  # facts about the model, which the tool reads from the checkpoint
        "hardware.gpu",  # facts about the card
        "hardware.memory_gib",
        "hardware.others_gib",
    }
)
"""Fields that state a fact, or that others decide: no target has to write them."""

_NO_NEUTRAL = frozenset(
    {
        "model.name",
        "task.seq_len",
        "strategy.precision",
        "strategy.optimizer",
        "strategy.micro_batch",
        "strategy.grad_accum",
        "strategy.dp",
        "strategy.attention",
        "hardware.gpus",
        "hardware.gpus_per_node",
    }
)
"""Levers that always do something: a target that does not declare them drops them."""

_NEUTRAL: Mapping[str, Any] = {
    "task.method": "full",
    "strategy.tp": 1,
    "strategy.pp": 1,
    "strategy.pp_schedule": "1f1b",
    "strategy.virtual_pp": 1,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What a target does with a lever.

    Attributes:
        values: what can be written, None for every value.
        why: what stands in the way of other values.
    """

    values: tuple[Any, ...] | None = None
    why: str = ""

    def takes(self, value: Any) -> bool:
        """Whether the value can be written; of a list, whether every member can."""
        if self.values is None:
            return True
        if isinstance(value, tuple):
            return all(item in self.values for item in value)
        if isinstance(value, int) and not isinstance(value, bool) and int in self.values:
            return True
        return any(value is item or (value == item and type(value) is type(item)) for item in self.values)


def written(*values: Any, why: str = "") -> Rule:
    """The lever is written: any value, or one of ``values`` (``int`` among them stands for every whole number)."""
    return Rule(values=values or None, why=why)


def rules(**by_name: Rule) -> dict[str, Rule]:
    """Rules by dotted path, from field names.

    Raises:
        KeyError: a name that no field has.
    """
    return {BY_NAME[name].path: rule for name, rule in by_name.items()}


ADAPTERS: dict[str, Rule] = {
    name: written()
    for name in ("lora_rank", "lora_targets", "lora_train_also", "lora_alpha", "lora_dropout", "trainable")
}
"""Rules of a target that writes all adapters and frozen modules, as those that train with PEFT do."""


def effective(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by field name with those that have no effect set to neutral, adapters flat (``lora_rank``).

    Args:
        values: flat values of a completed job, and the model's fields.
    """
    v = dict(values)
    lora = v.pop("lora", None)
    adapters = v["method"] in ADAPTER_METHODS or (v["method"] in ("dpo", "grpo") and lora is not None)
    for spec in LEVERS:
        if spec.section == "task.lora":
            v[spec.name] = getattr(lora, spec.path.rpartition(".")[2]) if adapters and lora is not None else None
    v["trainable"] = v["trainable"] if v["method"] == "freeze" else None
    if v["method"] == "full":
        v["weights"] = "bf16"
    if v["zero"] < 3:
        v["reshard"] = True
    if v["zero"] == 0:
        v["dp_shard"] = v["dp"]
    if v["pp"] == 1:
        v["pp_schedule"], v["virtual_pp"], v["pp_layers"] = "1f1b", 1, None
    if v["tp"] == 1:
        v["sequence_parallel"] = False
    return v


def neutral(spec: Field, values: Mapping[str, Any]) -> Any:
    """The value at which a lever does nothing.

    Raises:
        KeyError: it always does something.
    """
    if spec.path in _NO_NEUTRAL:
        raise KeyError(spec.path)
    if spec.path == "strategy.dp_shard":
        return values["dp"]
    if spec.section == "task.lora":
        return 0.0 if spec.name == "lora_dropout" and values.get("lora_rank") is not None else None
    return _NEUTRAL.get(spec.path, spec.default)


def is_neutral(spec: Field, values: Mapping[str, Any]) -> bool:
    """Whether the lever stands where it does nothing."""
    if spec.path in _NO_NEUTRAL:
        return False
    return bool(values.get(spec.name) == neutral(spec, values))


def cannot(path: str, value: Any, tool: str, *, why: str = "", hint: str | None = None) -> JobError:
    """The error for a lever that a tool has no words for."""
    shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
    text = f"{tool} cannot express {BY_PATH[path].name} = {shown}"
    return JobError(path, f"{text}: {why}" if why else text, value=value, hint=hint)


def faults(
    declared: Mapping[str, Rule], values: Mapping[str, Any], tool: str, others: Mapping[str, Mapping[str, Rule]]
) -> Iterator[JobError]:
    """Every lever whose value the target cannot write.

    Args:
        declared: the target's rules by path.
        values: effective values.
        tool: what the target is called in messages.
        others: the rules of all targets by name, for the hint which of them can.
    """
    for spec in LEVERS:
        if spec.path in FACTS:
            continue
        value = values.get(spec.name)
        if _can(declared, spec, values):
            continue
        rule = declared.get(spec.path)
        able = [name for name, theirs in others.items() if _can(theirs, spec, values)]
        hints = []
        if rule is not None and rule.values is not None:
            hints.append(f"it can: {', '.join(_words(rule.values))}")
        if able:
            hints.append(f"targets that can express it: {', '.join(able)}")
        yield cannot(spec.path, value, tool, why=rule.why if rule else "", hint="; ".join(hints) or None)


def _can(declared: Mapping[str, Rule], spec: Field, values: Mapping[str, Any]) -> bool:
    rule = declared.get(spec.path)
    value = values.get(spec.name)
    if value is None or value == () or (rule is None and is_neutral(spec, values)):
        return spec.path not in _NO_NEUTRAL or rule is not None
    return rule is not None and rule.takes(value)


def _words(values: Iterable[Any]) -> list[str]:
    return [
        "a number" if value is int else str(value).lower() if value in (True, False) else str(value) for value in values
    ]
