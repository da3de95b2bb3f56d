"""``memfit trace``: the allocations of the real module, one by one, without a GPU."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memfit.cli.jobs import SOURCE, given, job_command
from memfit.cli.output import emit, hinted, make_page
from memfit.errors import MemfitError, MissingError

if TYPE_CHECKING:
    from memfit.formula.estimate import Estimate
    from memfit.trace import Trace
    from memfit.trace.answer import Answer

_GZIP = b"\x1f\x8b"
_FILES = ("events", "snapshot", "svg")
_RUN = ("engine", "rank", "stage", "layers", "steps", "full", "script", "script_args")


@job_command("trace", f"[{SOURCE}|FILE]")
@click.option("--events", metavar="FILE", help="Write the events to a file that this command reads again.")
@click.option("--snapshot", metavar="FILE", help="Write PyTorch's memory snapshot, for its memory_viz page.")
@click.option("--svg", metavar="FILE", help="Write the timeline as a picture.")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@click.option(
    "--what-if",
    "what_ifs",
    multiple=True,
    metavar="SETTINGS",
    help="Compare these allocator settings (text of PYTORCH_ALLOC_CONF); may be given several times, `all` for a list.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "meta", "fake-cuda"]),
    default="auto",
    help="meta works with any torch; fake-cuda knows autocast, streams, FSDP2; auto takes what the job needs.",
)
@click.option("--rank", type=click.IntRange(0), default=0, metavar="N", help="The rank that is traced.")
@click.option("--stage", type=click.IntRange(0), metavar="N", help="The pipeline stage; the fullest unless stated.")
@click.option("--layers", type=click.IntRange(1), metavar="N", help="Cut the model to its first layers.")
@click.option("--steps", type=click.IntRange(1, 16), default=2, metavar="N", help="Optimizer steps to trace.")
@click.option("--full", is_flag=True, help="Trace every layer of a deep model, even if all are alike.")
@click.option("--script", metavar="FILE", help="Trace your own training script instead of a job.")
@click.option("--args", "script_args", metavar="TEXT", default="", help="The script's arguments, as one text.")
def command(
    ctx: click.Context,
    /,
    *,
    source: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    no_color: bool,
    events: str | None,
    snapshot: str | None,
    svg: str | None,
    force: bool,
    what_ifs: tuple[str, ...],
    engine: str,
    rank: int,
    stage: int | None,
    layers: int | None,
    steps: int,
    full: bool,
    script: str | None,
    script_args: str,
    **_: Any,
) -> int:
    """The allocations of the real module, one by one, without a GPU; what the caching allocator makes of them.

    MODEL and JOB are as for `memfit estimate`; FILE is what --events wrote, and needs no torch. Tracing a job does:
    `pip install memfit[torch]`.

    \b
    Examples:
      memfit trace qwen3-0.6b --gpu rtx-4090 --seq 2k --events run.memfit
      memfit trace run.memfit --svg run.svg --what-if max_split_size_mb:128
      memfit trace --script train.py --args "--batch 8" --gpu rtx-4090
    """
    from memfit.trace.answer import answer

    wanted = {"events": events, "snapshot": snapshot, "svg": svg}
    check_paths(ctx, wanted, force=force)
    predicted = None
    if source is not None and _is_trace(source):
        trace = _read(ctx, source, events)
    elif script is not None:
        trace = _run_script(ctx, source, script, script_args, steps)
    else:
        job = given(ctx, source)
        if job.empty:
            raise hinted("no model is given", "for example `memfit trace qwen3-0.6b --gpu rtx-4090 --seq 2k`", ctx)
        trace, predicted = _run(job.job(), stage=stage, layers=layers, full=full, rank=rank, engine=engine, steps=steps)
    found = answer(trace, () if quiet else allocator_settings(what_ifs), predicted=predicted)
    _write(found, wanted)
    page = make_page(verbose=verbose, no_color=no_color)
    if as_json:
        from memfit.report.json import dumps
        from memfit.report.trace import trace_document

        emit(dumps(trace_document(found)))
    elif quiet:
        from memfit.report.trace import headline

        emit(headline(found) + "\n")
    else:
        from memfit.report.trace import trace_text

        emit(trace_text(page, found))
    return 1 if found.verdict == "does not fit" else 0


def allocator_settings(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The texts of ``--what-if`` with `all` spelled out, or those that are compared anyway."""
    from memfit.allocator.questions import WHAT_IF_SETTINGS
    from memfit.trace.answer import SETTINGS

    if not texts:
        return SETTINGS
    several = [WHAT_IF_SETTINGS if text == "all" else (text,) for text in texts]
    return tuple(dict.fromkeys(text for part in several for text in part))


def _is_trace(source: str) -> bool:
    """Whether the text names a file of events: by its ending, or by the first bytes of the file."""
    if source.endswith((".memfit", ".trace.json.gz")):
        return True
    try:
        with Path(source).open("rb") as file:
            return file.read(2) == _GZIP
    except (OSError, ValueError):
        return False


def _read(ctx: click.Context, source: str, events: str | None) -> Trace:
    from memfit.trace.files import load

    typed = [name for name in _RUN if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if typed or events is not None or not given(ctx, None).empty:
        raise hinted("a file of events is read as it is", "leave out the flags of the job and of the run", ctx)
    return load(source)


def _run(
    job: Any, *, stage: int | None, layers: int | None, full: bool, rank: int, **options: Any
) -> tuple[Trace, Estimate]:
    from memfit.formula.estimate import estimate
    from memfit.trace.answer import described, shortened
    from memfit.trace.extrapolate import trace_job_deep

    predicted: Estimate = estimate(job if layers is None else shortened(job, layers))
    stage = predicted.fullest if stage is None else stage
    if stage >= len(predicted.readings):
        raise MemfitError(f"there is no pipeline stage {stage}", hint=f"stages are 0 to {len(predicted.readings) - 1}")
    ranks = predicted.resolved.values["dp"] * predicted.resolved.values["tp"]
    if rank >= ranks:
        raise MemfitError(f"there is no rank {rank}", hint=f"data and tensor parallel ranks are 0 to {ranks - 1}")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice is about using models, not tracing them
    try:
        trace = trace_job_deep(predicted, full=full, rank=rank, stage=stage, **options)
    except MemfitError:
        raise
    except Exception as error:  # the model is code of others: what it cannot do, it says in its own way
        if os.environ.get("MEMFIT_DEBUG"):
            raise
        text = str(error).strip().partition("\n")[0][:300]
        raise MemfitError(
            f"the model stops with {type(error).__name__}: {text}", hint="MEMFIT_DEBUG=1 shows where"
        ) from error
    return described(trace, predicted.job, rank=rank, stage=stage), predicted


def _run_script(ctx: click.Context, source: str | None, script: str, arguments: str, steps: int) -> Trace:
    """The trace of a script; of the job's flags only the card counts."""
    import shlex
    from dataclasses import replace

    typed = given(ctx, None)
    others = [flag for path, flag in typed.flags.items() if path not in ("hardware.gpu", "hardware.gpus")]
    ran = ("engine", "rank", "stage", "layers", "full")
    others += [f"--{n}" for n in ran if ctx.get_parameter_source(n) is click.core.ParameterSource.COMMANDLINE]
    if source is not None or others or typed.family is not None:
        text = f"with --script the program is the script's own: {source[:60] if source else (others or ['--as'])[0]}"
        raise hinted(f"{text} does not count", "of a job's flags only --gpu goes with it", ctx)
    card = typed.job().hardware.gpu
    try:
        from memfit.trace.answer import card_settings
        from memfit.trace.job import lookup, target
        from memfit.trace.script import trace_script
    except ImportError as error:
        raise MissingError(f"tracing needs {error.name}", hint="pip install memfit[torch]") from error
    try:
        words = shlex.split(arguments)
    except ValueError as error:
        raise hinted(f"--args cannot be read: {error}", "quote it as a shell would", ctx) from error
    trace = trace_script(script, words, steps=steps, gpu=target(card))
    return trace if card is None else replace(trace, settings={**trace.settings, "card": card_settings(lookup(card))})


def check_paths(ctx: click.Context, wanted: dict[str, str | None], *, force: bool) -> None:
    """Refuses before the work is done what could not be written after it."""
    paths = [Path(name) for name in wanted.values() if name is not None]
    if len(set(paths)) < len(paths):
        raise hinted("two files have one name", "give each its own", ctx)
    for path in paths:
        with suppress(ValueError):
            if path.is_dir() or not path.parent.is_dir():
                raise MemfitError(f"`{str(path)[:200]}` cannot be written: there is no such folder, or it is one")
            if path.exists() and not force:
                raise MemfitError(f"`{str(path)[:200]}` exists", hint="--force overwrites it")


def _write(found: Answer, wanted: dict[str, str | None]) -> None:
    try:
        if wanted["events"] is not None:
            from memfit.trace.files import save

            save(found.trace, wanted["events"])
        if wanted["snapshot"] is not None:
            from memfit.trace.answer import frames_of

            found.trace.simulate(history=True, frames=frames_of(found.trace)).write_snapshot(wanted["snapshot"])
        if wanted["svg"] is not None:
            from memfit.report.svg import timeline_svg

            Path(wanted["svg"]).write_text(timeline_svg(found), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise MemfitError(f"a file cannot be written: {error}") from error
