"""A job on its way into another tool's words: complete, checked, with the worth of each lever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from memfit.errors import JobError, JobErrors, MemfitError
from memfit.export.levers import LEVERS, effective, faults
from memfit.export.target import Target
from memfit.formula.estimate import Estimate, estimate
from memfit.formula.resolve import defaults_of
from memfit.job import BY_NAME, BY_PATH, Completed, Job, Strategy, complete
from memfit.models import Architecture
from memfit.units import GIB

_WITHOUT: Mapping[str, Any] = {
    "zero": 0,
    "checkpointing": "none",
    "loss": "eager",
    "optimizer": "adamw",
    "optimizer_in_backward": False,
    "offload": (),
    "compile": False,
    "attention": "eager",
    "sequence_parallel": False,
    "reshard": True,
    "set_to_none": True,
    "precision": "fp32",
    "weights": "bf16",
}
"""The plain value of a lever: what leaving it out means, to say what it is worth."""

_SHOWN = (
    "method", "seq_len", "precision", "optimizer", "micro_batch", "grad_accum", "dp", "zero", "dp_shard", "reshard",
    "tp", "sequence_parallel", "pp", "pp_schedule", "virtual_pp", "pp_layers", "cp", "ep", "checkpointing", "compile",
    "attention", "loss", "offload", "weights", "optimizer_in_backward", "lora_rank", "lora_targets", "lora_train_also",
    "trainable",
)  # fmt: skip
_ALWAYS = frozenset({"method", "seq_len", "precision", "optimizer", "micro_batch", "grad_accum", "dp", "zero",
                     "checkpointing", "attention", "loss"})  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a target writes from.

    Attributes:
        job: the job with every field filled.
        values: effective values by field name (``lora_rank``; what has no effect is neutral), with name and config.
        origins: dotted path -> where the value comes from.
        target: the target it is written for.
        estimate: the memory of the job in the target's framework.
        model: what the tool loads: a hub id or a path.
        program: the target whose program a launcher starts, with its files; None elsewhere.
        warnings: what the user should know.
        own: paths of fields that nobody stated and that the tool's own way of working decides.
    """

    job: Job
    values: Mapping[str, Any] = field(hash=False)
    origins: Mapping[str, str] = field(hash=False)
    target: Target
    estimate: Estimate = field(hash=False)
    model: str
    program: Program | None = None
    warnings: tuple[str, ...] = ()
    own: frozenset[str] = frozenset()
    _worth: dict[str, int | None] = field(default_factory=dict, repr=False, compare=False)

    def __getattr__(self, name: str) -> Any:
        """The effective value of a field by its name, e.g. ``plan.zero``."""
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def arch(self) -> Architecture:
        """The model's architecture."""
        return self.estimate.resolved.arch

    @property
    def adapters(self) -> bool:
        """Adapters are trained, the rest is frozen."""
        return self.values["lora_rank"] is not None

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return -(-int(self.values["gpus"]) // int(self.values["gpus_per_node"]))

    @property
    def gpus_each(self) -> int:
        """GPUs of one machine that are used."""
        return min(int(self.values["gpus"]), int(self.values["gpus_per_node"]))

    def origin(self, name: str) -> str:
        """Where a value comes from, in words."""
        path = BY_NAME[name].path
        origin = self.origins.get(path, "default")
        if origin == "profile" and path in self.own:
            return f"the way of {self.target.title}"
        return {
            "stated": "stated",
            "derived": "follows from the others",
            "profile": f"usual with {self.job.strategy.framework}",
        }.get(origin, "default")

    def worth(self, name: str) -> int | None:
        """Bytes that the peak of a GPU would grow by (negative: shrink) if the lever were left out; None if unknown."""
        if name not in self._worth:
            self._worth[name] = self._estimated_worth(name)
        return self._worth[name]

    def _estimated_worth(self, name: str) -> int | None:
        if name not in _WITHOUT or self.values[name] == _WITHOUT[name]:
            return None
        strategy = replace(self.estimate.job.strategy, **{name: _WITHOUT[name]})
        try:
            other = estimate(replace(self.estimate.job, strategy=strategy))
        except MemfitError:
            return None
        return other.reserved_bytes - self.estimate.reserved_bytes

    def note(self, name: str) -> str:
        """Where a lever's value comes from and what leaving it out would do."""
        worth = self.worth(name)
        if worth is None or abs(worth) < 0.005 * GIB:
            return self.origin(name)
        return f"{self.origin(name)}; {worth / GIB:+.2f} GiB a GPU without it"

    def reasons(self) -> list[tuple[str, str, str]]:
        """(lever, value, note) of every lever that does something, in document order."""
        plain = {spec.name: spec for spec in LEVERS}
        rows = []
        for name in _SHOWN:
            value = self.values[name]
            spec = plain[name]
            default = self.values["dp"] if name == "dp_shard" else spec.default
            idle = value is None or value == () or value == default or value == {"tp": 1, "pp": 1}.get(name)
            idle = idle or (name == "pp_schedule" and self.values["pp"] == 1) or (name == "virtual_pp" and value == 1)
            if name in _ALWAYS or not idle:
                rows.append((name, _word(value), self.note(name)))
        return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What a launcher starts on every machine.

    Attributes:
        target: whose files it runs.
        plan: the plan of that target.
        command: the shell command of one machine; it may use the variables NNODES, NODE_RANK, MASTER_ADDR,
            MASTER_PORT, which the launcher sets.
    """

    target: Target
    plan: Plan
    command: str


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item:g}" for key, item in value.items())
    return str(value)


def make_plan(job: Job, target: Target, others: Mapping[str, Mapping[str, Any]]) -> Plan:
    """Completes and checks a job for a target.

    Args:
        job: what was stated. A framework that it does not state is the target's.
        target: what it is written for.
        others: the levers of all targets by name, for hints.

    Raises:
        JobErrors: levers that the target cannot express, all at once, each naming the lever.
        MemfitError: the job, its model or its card cannot be read.
    """
    kind = complete(job).values["kind"]
    if kind != "train":
        message = f"{target.tool} trains; this is a serving job"
        raise JobErrors([JobError("task.kind", message, value=kind, hint="export a training job")])
    framework, version = target.framework
    stated = job
    if job.strategy.framework is None:
        stated = replace(job, strategy=replace(job.strategy, framework=framework, framework_version=version))
    own = {**_storage(*target.framework), **target.defaults(job)}
    defaults = {**defaults_of(stated.strategy), **own}
    completed = complete(stated, defaults)
    values = _values(completed)
    found = list(faults(target.levers, _identified(values), target.tool, others))
    foreign = {error.path: error.value for error in found if completed.origins.get(error.path) == "profile"}
    if foreign:  # habits of the job's framework that the target has no words for give way to its own
        usual = defaults_of(replace(stated.strategy, framework=framework, framework_version=version))
        own = {**own, **{path: usual[path] for path in foreign if path in usual}}
        completed = complete(stated, {**{k: v for k, v in defaults.items() if k not in foreign}, **own})
        values = _values(completed)
        found = list(faults(target.levers, _identified(values), target.tool, others))
    chosen = completed.job.strategy
    if target.variant is not None:
        framework, version = target.variant(chosen)
    strategy = replace(chosen, framework=framework, framework_version=version)
    answer = estimate(replace(completed.job, strategy=strategy))
    plan = Plan(
        job=completed.job,
        values=values,
        origins=completed.origins,
        target=target,
        estimate=answer,
        model=_model(job, answer),
        warnings=(*_warnings(stated, completed, target), *_given_up(foreign, completed, target), *_card(answer)),
        own=frozenset(path if path in BY_PATH else path.rpartition(".")[0] for path in own),
    )
    if answer.resolved.arch.kind not in target.kinds and not target.launcher:
        raise JobErrors([_other_kind(plan), *found])
    known = {error.path for error in found}
    found += [error for error in target.check(plan) if error.path not in known]
    if found:
        raise JobErrors(found)
    return plan


def _values(completed: Completed) -> dict[str, Any]:
    model = completed.job.model
    return effective({**completed.values, "name": model.name, "config": model.config, "extra": None})


def _given_up(foreign: Mapping[str, Any], completed: Completed, target: Target) -> Iterator[str]:
    """Which habits of the job's framework the target does not follow."""
    framework = completed.values["framework"]
    for path, value in foreign.items():
        now = f"`{path}` = {_word(completed.values[BY_PATH[path].name])}"
        yield f"{now}: {_word(value)}, usual with {framework}, was not stated and {target.title} has no words for it"


def _storage(framework: str, version: str | None) -> dict[str, Any]:
    """The dtypes that a tool itself loads weights in: they are its own whatever the job's framework is."""
    ours = defaults_of(Strategy(framework=framework, framework_version=version))
    return {path: ours[path] for path in ours if path.startswith("strategy.weights.") or path.endswith(".alone")}


_KINDS = {"decoder": "a decoder", "encoder": "an encoder", "seq2seq": "an encoder-decoder", "vision": "multimodal"}


def _other_kind(plan: Plan) -> JobError:
    """The target does not take such a model."""
    from memfit.export import NAMES, target

    able = [name for name in NAMES if plan.arch.kind in target(name).kinds]
    text = f"{plan.target.tool} does not train {plan.name or 'this configuration'}, which is {_KINDS[plan.arch.kind]}"
    return JobError("model.name", text, hint=f"targets that take it: {', '.join(able)}")


def _card(answer: Estimate) -> Iterator[str]:
    """What the card cannot do of what is written."""
    gpu, attention = answer.resolved.gpu, answer.job.strategy.attention
    if gpu is None or gpu.compute_capability is None:
        return
    if attention == "flash" and gpu.compute_capability < (8, 0):
        yield f"FlashAttention needs Ampere or newer, which {gpu.title} is not: attention = sdpa"
    if str(answer.job.strategy.precision).startswith("bf16") and "bf16" not in gpu.flops:
        yield f"{gpu.title} does not multiply in bf16: precision = fp16-mixed"


def _identified(values: Mapping[str, Any]) -> dict[str, Any]:
    """A model given by its configuration has a name all the same: the folder that is written."""
    return {**values, "name": values["name"] or "model"}


def _model(job: Job, answer: Estimate) -> str:
    """What a tool loads: the hub id of a catalog model, or the path as stated."""
    if job.model.config is not None:
        return "model"
    from memfit.models import catalog

    name = str(job.model.name)
    entry = catalog.lookup(name)
    if entry is not None and "/" not in name:
        return entry.repo
    return name.removesuffix("/config.json") if answer else name


def _warnings(stated: Job, completed: Completed, target: Target) -> tuple[str, ...]:
    found = list(completed.warnings)
    framework = str(stated.strategy.framework)
    if framework != target.framework[0]:
        text = (
            f"the job is of {framework}: memory under {target.title} differs; the estimate here is for {target.title}"
        )
        found.append(text)
    if target.note:
        found.append(target.note)
    return tuple(found)
