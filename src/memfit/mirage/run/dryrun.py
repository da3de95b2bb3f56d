"""From a command line to an answer: run the script on the card, and once more without a limit when it does not fit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memfit.errors import MemfitError
from memfit.hardware import Gpu
from memfit.mirage.run.child import Ended, run_child
from memfit.mirage.run.facts import Facts, Failure, read_facts
from memfit.mirage.run.options import RunOptions
from memfit.trace.answer import SETTINGS, Answer, answer, card_settings, short_source
from memfit.trace.files import load
from memfit.trace.result import Trace

WITHOUT_LIMIT = 4 << 40
"""Memory of the card on which a script that ran out is run again, to see all of it."""

Environment = Callable[[int | None], Mapping[str, str]]
"""Variables of the imaginary GPU, with other total bytes than the card's when they are given."""


class ScriptError(MemfitError):
    """The script ended for a reason of its own, before it left anything to report."""

    code = "script"


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """One process of the script on the imaginary GPU.

    Attributes:
        options: how it was run.
        gpu: the card.
        facts: what the hooks saw in the run that is reported: the one on the card, or when that ran out of memory the
            one without a limit.
        answer: its allocations, held against the card.
        oom: the out-of-memory error on the card, None when there was none.
        failure: another exception that ended the script, None when there was none.
        ended: how the process on the card ended.
        seconds: wall-clock time of all runs.
        snapshot: bytes of PyTorch's own snapshot: on the card, at the moment at which the script ended.
    """

    options: RunOptions
    gpu: Gpu
    facts: Facts
    answer: Answer
    oom: Failure | None
    failure: Failure | None
    ended: Ended
    seconds: float
    snapshot: bytes

    @property
    def fits(self) -> bool:
        """Whether the script did its steps on the card."""
        return self.oom is None


class _Run:
    """One run and what it left."""

    def __init__(self, ended: Ended, facts: Facts, trace: Trace, snapshot: bytes) -> None:
        self.ended, self.facts, self.trace, self.snapshot = ended, facts, trace, snapshot


def dryrun(
    options: RunOptions,
    gpu: Gpu,
    environment: Environment,
    *,
    base: Mapping[str, str],
    total_bytes: int | None = None,
    settings: Sequence[str] = SETTINGS,
    echo: Callable[[bytes], None] | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> DryRun:
    """Run a script and answer what it needs.

    Args:
        options: the script and how it is run.
        gpu: the card.
        environment: variables of the imaginary GPU.
        base: variables that the script inherits.
        total_bytes: of the card's memory, instead of the card's own.
        settings: texts of ``PYTORCH_ALLOC_CONF`` to compare with what the script runs under.
        echo: gets what the script writes.
        say: gets a line about what goes on.

    Raises:
        ScriptError: the script failed before it used the GPU, or it ran into a limit of time or host memory.
        MissingError: the script's program does not exist, or its torch cannot be used.
    """
    on_card = _run(options, environment(total_bytes), base, echo)
    failure = on_card.facts.failure
    oom = failure if failure is not None and failure.out_of_memory else None
    told = on_card
    if oom is not None:
        say("it runs out of memory on this card; running once more without a limit to see all of it")
        told = _run(options, environment(WITHOUT_LIMIT), base, None)
        failure = told.facts.failure
    card = card_settings(gpu, total_bytes)
    trace = _without_paths(told.trace, {"card": card, "device": told.facts.device_name})
    trace = trace.with_notes(told.facts.notes).with_warnings(_warnings(told.facts, options))
    return DryRun(
        options=options,
        gpu=gpu,
        facts=told.facts,
        answer=answer(trace, settings),
        oom=oom,
        failure=failure,
        ended=on_card.ended,
        seconds=on_card.ended.seconds + (told.ended.seconds if told is not on_card else 0.0),
        snapshot=on_card.snapshot,
    )


def dryrun_stages(options: RunOptions, stages: int, *args: Any, **kwargs: Any) -> list[DryRun]:
    """The first rank of each pipeline stage, in order: each stage learns the shapes that the one before sent.

    Args:
        options: as for ``dryrun``; its rank is set here.
        stages: equal parts of the ranks.
        args, kwargs: as for ``dryrun``.

    Raises:
        MemfitError: the ranks do not divide into the stages.
    """
    ranks = options.ranks or 1
    if not 1 <= stages <= ranks or ranks % stages:
        raise MemfitError(f"{ranks} ranks do not divide into {stages} pipeline stages", hint="--ranks and --stages")
    with tempfile.TemporaryDirectory(prefix="memfit-stages-") as folder:
        kwargs["base"] = {**kwargs["base"], "MEMFIT_STAGES_FOLDER": folder}
        firsts = (replace(options, rank=stage * (ranks // stages)) for stage in range(stages))
        return [dryrun(first, *args, **kwargs) for first in firsts]


def _run(
    options: RunOptions, card: Mapping[str, str], base: Mapping[str, str], echo: Callable[[bytes], None] | None
) -> _Run:
    with _folder() as folder:
        if options.fake_weights:
            (folder / "catalog.json").write_text(json.dumps(_catalog()), encoding="utf-8")
        ended = run_child(
            options.words(),
            options.environment(folder, base, card),
            timeout_s=options.timeout_s,
            host_memory_bytes=options.host_memory_bytes,
            echo=echo,
        )
        found = read_facts(folder)
        if ended.stopped:
            raise _stopped(options, ended)
        if not found:
            raise _nothing(ended)
        facts = found[0]
        failure = facts.failure
        if failure is not None and not failure.out_of_memory and not facts.steps:
            raise _failed(failure, ended)
        trace = load(folder / f"{facts.pid}.trace.json.gz")
        snapshot = (folder / f"{facts.pid}.snapshot.pickle").read_bytes()
    return _Run(ended, facts, trace, snapshot)


def _catalog() -> dict[str, Any]:
    """Configurations by the lower-case names that scripts use for them."""
    from memfit.models import catalog

    entries = [entry for entry in map(catalog.lookup, catalog.names()) if entry is not None]
    return {name.lower(): entry.config for entry in entries for name in (entry.name, entry.repo, *entry.aliases)}


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="memfit-dryrun-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def _stopped(options: RunOptions, ended: Ended) -> ScriptError:
    if ended.stopped == "time":
        text = f"the script was ended after {options.timeout_s:g} s, before it had done {options.steps} steps"
        hint = "--timeout sets the limit, --steps fewer steps, -v shows what it writes"
    else:
        limit = (options.host_memory_bytes or 0) / (1 << 30)
        text = f"the script was ended because it took more than {limit:.1f} GiB of this machine's own memory"
        hint = "--fake-weights leaves weights unread and uninitialised; --host-memory sets the limit"
    return ScriptError(text, hint=hint)


def _nothing(ended: Ended) -> ScriptError:
    lines = ended.last_lines
    if ended.code == 0:
        return ScriptError(
            "the script ended without using the GPU",
            hint="does it choose the CPU, or start Python with -I, -E or -S? Its last line: " + (lines or ["none"])[-1],
        )
    how = f"exit code {ended.code}" if ended.code > 0 else f"signal {-ended.code}"
    text = f"the script failed with {how} before it used the GPU"
    return ScriptError(text, hint="its last lines: " + " | ".join(lines[-4:]) if lines else None)


def _failed(failure: Failure, ended: Ended) -> ScriptError:
    where = failure.frames[-1] if failure.frames else None
    at = f" ({short_source(f'{where.file}:{where.line}')})" if where is not None else ""
    first = failure.text.strip().partition("\n")[0][:300]
    text = f"the script failed before its first optimizer step: {failure.type}: {first}{at}"
    return ScriptError(text, hint="its last lines: " + " | ".join(ended.last_lines[-4:]))


def _without_paths(trace: Trace, settings: Mapping[str, Any]) -> Trace:
    """The trace without this machine's folders: its file can be answered anywhere."""
    blocks = {uid: replace(block, source=short_source(block.source)) for uid, block in trace.blocks.items()}
    return replace(trace, blocks=blocks, settings={**trace.settings, **settings})


def _warnings(facts: Facts, options: RunOptions) -> list[str]:
    """What the run itself says against the simulation of other capacities and settings."""
    found = list(facts.warnings)
    if (options.ranks or 1) > 1:
        found.append("NCCL's own buffers come on top of this: about 0.4 to 1.5 GiB for the first communicator")
    if not facts.complete:
        found.append("the history of allocations was cut: only its end was kept, so peaks may be missing")
    if facts.private_bytes:
        found.append("private pools (CUDA graphs) are simulated as part of the common pool")
    if facts.others:
        peaks = ", ".join(f"GPU {i} {size / (1 << 30):.2f} GiB" for i, size in facts.others.items())
        found.append(f"the script also used {peaks}; GPU {facts.device} is reported")
    if facts.num_oom and facts.failure is None:
        found.append(f"the script ran out of memory {facts.num_oom} times, caught it and went on")
    return found
