"""``memfit plan``: the best configuration that fits, and why it is the best."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memfit.cli.jobs import ForeignFileError, Given, given, imported, job_command
from memfit.cli.output import UsageFaultError, emit, hinted, make_page
from memfit.errors import MemfitError

if TYPE_CHECKING:
    from memfit.planner import Answer, Plan, Request

_NOT_REPEATED = frozenset({"-v", "--verbose", "--no-color", "--force"})
_OBJECTIVES = ("time", "throughput", "cost", "gpus", "seq", "batch", "changes")
_TRACED = 3
_ENDINGS = {".toml": "toml", ".json": "json", ".yaml": "yaml", ".yml": "yaml"}


@job_command("plan")
@click.option("--objective", type=click.Choice(_OBJECTIVES), help="What is best; time unless stated.")
@click.option(
    "--allow",
    "allow",
    multiple=True,
    metavar="WHAT",
    help="Permit what changes results: optimizer, precision, method, weights, kv, or one value such as adamw-8bit.",
)
@click.option("--risk", metavar="P", default="1%", help="Largest accepted probability of running out of memory; 1%.")
@click.option("--from", "today", metavar="JOB", help="Today's job: its strategy may change, in as little as possible.")
@click.option("--budget", metavar="USD/h", help="Most dollars an hour for all GPUs, e.g. 20/h.")
@click.option("--within", metavar="A,B", help="Only these providers.")
@click.option("--price", "prices", multiple=True, metavar="[GPU=]USD", help="What a GPU-hour costs you.")
@click.option("--prices", "price_list", metavar="FILE", help="The prices that count, in place of memfit's: a list.")
@click.option("--spot", is_flag=True, help="Count with interruptible prices where they are known.")
@click.option("--tokens", metavar="N", help="Tokens of the whole run, e.g. 2T, for its time and cost.")
@click.option("--host-memory", metavar="SIZE", help="Memory of one host, e.g. 128GiB: what may be offloaded.")
@click.option("--top", type=int, default=3, metavar="K", help="Number of plans; 3.")
@click.option("--explain", "lever", metavar="LEVER", help="Try every value of a lever, everything else searched again.")
@click.option("--out", metavar="FILE", help="Write the best plan as a job: .toml, .yaml or .json.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
@click.option("--trace/--no-trace", "traced", default=True, help="Trace the best plans where torch is installed.")
def command(
    ctx: click.Context,
    /,
    *,
    source: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    no_color: bool,
    lever: str | None,
    out: str | None,
    force: bool,
    traced: bool,
    **options: Any,
) -> int:
    """The best configuration that fits, and why it is the best.

    What the job states stays as it is, everything else is searched. Nothing that changes results is chosen unless
    --allow permits it.

    \b
    Examples:
      memfit plan llama-3.1-8b --gpu 8xh100 --seq 8k --out plan.toml
      memfit plan llama-3.1-8b --gpu any --budget 20/h --objective cost
      memfit plan --from job.toml
    """
    request = _request(ctx, source, options)
    form = _format(out, force=force)
    from memfit.planner import plan

    answer = plan(request, lever=lever or "")
    if traced and answer.best is not None and answer.best.candidate is not None:
        answer = _checked(answer)
    if out is not None and answer.best is not None:
        _write(answer.best, out, form)
    if as_json:
        from memfit.report.json import dumps
        from memfit.report.plan_document import plan_document

        emit(dumps(plan_document(answer)))
    elif quiet:
        from memfit.report.plan import plan_headline

        emit(plan_headline(answer) + "\n")
    else:
        from memfit.report.plan import plan_text

        page = make_page(verbose=verbose, no_color=no_color)
        words = [word for word in ctx.find_root().obj or () if word not in _NOT_REPEATED]
        written = out if answer.best is not None else None
        emit(plan_text(page, answer, command=shlex.join(["memfit", *words]), written=written))
    return 0 if answer.plans else 1


def _request(ctx: click.Context, source: str | None, options: Mapping[str, Any]) -> Request:
    from memfit.hardware import read_prices
    from memfit.planner import Request

    today, job = options["today"], given(ctx, source)
    if today is not None and source is not None:
        raise hinted("today's job and another one are given", "memfit plan --from job.toml [flags that are fixed]", ctx)
    if today is None and job.empty:
        raise hinted("no model is given", "for example `memfit plan llama-3.1-8b --gpu 8xh100`", ctx)
    now = None
    if today is not None:
        found = _today(ctx, today)
        job = Given(found.document, job.overrides, job.family, job.flags)
        now = found.job({path: value for path, value in job.overrides.items() if _open(found.document, path)})
    objective: Any = options["objective"] or ("changes" if today is not None else "time")
    return Request(
        job=job.job(),
        today=now,
        keep=frozenset(path.rpartition(".")[2] for path in job.overrides),
        objective=objective,
        allow=frozenset(w.strip() for text in options["allow"] for w in text.split(",") if w.strip()),
        risk=_share(options["risk"]),
        top=options["top"],
        budget=None if options["budget"] is None else dollars(options["budget"], "--budget"),
        within=tuple(w.strip().lower() for w in (options["within"] or "").split(",") if w.strip()),
        prices=_prices(options["prices"]),
        price_list=None if options["price_list"] is None else read_prices(options["price_list"]),
        spot=options["spot"],
        tokens=_tokens(options["tokens"]),
        host_bytes=_size(options["host_memory"]),
    )


def _today(ctx: click.Context, path: str) -> Given:
    bare = click.Context(ctx.command)
    try:
        found = given(bare, path)
    except ForeignFileError as error:
        return imported(bare, path, error.tool)
    if found.document is None:
        raise hinted(f"`{path[:60]}` is not a job file", "--from takes a .toml, .yaml or .json job", ctx)
    return found


def _open(document: Mapping[str, Any] | None, path: str) -> bool:
    """Whether today's job leaves open a fact that a flag states: its model, or what it runs on."""
    section, _, leaf = path.partition(".")
    return section in ("model", "hardware") and ((document or {}).get(section) or {}).get(leaf) is None


def _share(text: str) -> float:
    try:
        number = float(text.strip().rstrip("%"))
    except ValueError:
        raise UsageFaultError(f"`--risk {text[:40]}` is not a probability", hint="write 1% or 0.01") from None
    return number / 100 if text.strip().endswith("%") else number


def dollars(text: str, flag: str) -> float:
    """An amount as typed: ``20``, ``20/h``, ``$2.5``.

    Raises:
        UsageFaultError: not a number.
    """
    plain = text.strip().lower().removeprefix("$").removesuffix("/h").removesuffix("usd").strip()
    try:
        return float(plain)
    except ValueError:
        raise UsageFaultError(f"`{flag} {text[:40]}` is not a number of dollars", hint="write 20 or 20/h") from None


def _prices(texts: tuple[str, ...]) -> dict[str, float]:
    out = {}
    for text in texts:
        name, sign, amount = text.rpartition("=")
        out[name.strip() if sign else ""] = dollars(amount, "--price")
    return out


_COUNTS = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def _tokens(text: str | None) -> int | None:
    if text is None:
        return None
    word = text.strip().lower()
    unit = _COUNTS.get(word[-1:], 1)
    try:
        count = float(word[:-1] if word[-1:] in _COUNTS else word) * unit
    except ValueError:
        count = 0.0
    if not 1 <= count <= 1e18:
        raise UsageFaultError(f"`--tokens {text[:40]}` is not a number of tokens", hint="write 15T, 100B or 1000000")
    return round(count)


def _size(text: str | None) -> int | None:
    from memfit.units import GIB, parse_bytes

    if text is None:
        return None
    try:
        size = parse_bytes(text)
    except ValueError as error:
        raise UsageFaultError(f"`--host-memory {text[:40]}`: {error}") from None
    if size < GIB:
        raise UsageFaultError(f"`--host-memory {text[:40]}` is less than 1 GiB", hint="write 128GiB")
    return size


def _format(out: str | None, *, force: bool) -> str:
    """Refuses before the work is done what could not be written after it."""
    if out is None:
        return "toml"
    path = Path(out)
    form = _ENDINGS.get(path.suffix.lower())
    if form is None:
        raise UsageFaultError(f"`--out {out[:60]}` has no known ending", hint=f"one of {', '.join(_ENDINGS)}")
    try:
        if path.is_dir() or not path.parent.is_dir():
            raise MemfitError(f"`{out[:200]}` cannot be written: there is no such folder, or it is one")
        if path.exists() and not force:
            raise MemfitError(f"`{out[:200]}` exists", hint="--force overwrites it")
    except (OSError, ValueError) as error:
        raise MemfitError(f"`{out[:200]}` cannot be written: {error}") from None
    return form


def _write(plan: Plan, out: str, form: str) -> None:
    from memfit.job import dumps

    try:
        Path(out).write_text(dumps(plan.job, form), encoding="utf-8")
    except OSError as error:
        raise MemfitError(f"`{out[:200]}` cannot be written: {error.strerror or error}") from error


def _checked(answer: Answer) -> Answer:
    """The answer with the best plans traced through their real modules, where torch and transformers are installed."""
    from dataclasses import replace

    from memfit.planner.answer import Checked, without

    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        why = "torch and transformers are not installed (pip install memfit[torch])"
        return replace(answer, checked=tuple(Checked(why=why) for _ in answer.plans[:1]))
    checks = tuple(_trace(plan) for plan in answer.plans[:_TRACED])
    answer = replace(answer, checked=checks)
    unfit = {i for i, check in enumerate(checks) if check.fits is False}
    return without(answer, unfit) if unfit and len(checks) == len(answer.plans) else answer


def _trace(plan: Plan) -> Any:
    """What the real module says. Two micro-batches are traced: more of them accumulate into the same gradients."""
    import os
    from dataclasses import replace

    from memfit.formula.estimate import estimate
    from memfit.planner.answer import Checked
    from memfit.trace.answer import answer as answer_of
    from memfit.trace.answer import described
    from memfit.trace.extrapolate import trace_job_deep

    strategy = replace(plan.job.strategy, grad_accum=min(plan.job.strategy.grad_accum or 1, 2))
    found = estimate(replace(plan.job, strategy=strategy, task=replace(plan.job.task, global_batch=None)))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        trace = trace_job_deep(found, full=False, rank=0, stage=found.fullest, engine="auto", steps=2)
        told = answer_of(described(trace, found.job, rank=0, stage=found.fullest), (), predicted=found)
    except MemfitError as error:
        return Checked(why=error.message)
    except Exception as error:  # the model is code of others: what it cannot do, it says in its own way
        return Checked(why=f"the model stops with {type(error).__name__}")
    capacity = told.capacity_bytes
    return Checked(need_bytes=told.needed[1], fits=capacity is None or told.needed[0] <= capacity)
