"""``memfit estimate``: where the memory of a job goes, and whether it fits."""

from __future__ import annotations

import shlex
from typing import Any

import click

from memfit.cli.jobs import Given, given, imported, job_command
from memfit.cli.output import emit, hinted, make_page

_NOT_REPEATED = frozenset({"-v", "--verbose", "--no-color", "--full"})


@job_command("estimate")
@click.option("--timeline", is_flag=True, help="Show the moments of a step.")
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="FIELD=A..B",
    help="Vary a field: seq=2k..128k doubles, micro_batch=1..8:1 adds, zero=0,2,3 lists. May be given twice.",
)
@click.option(
    "--batch", metavar="FILE", help="Jobs of a JSON-lines file, - for standard input: a result for each line."
)
@click.option("--calibration", metavar="FILE", help="Figures of the time model, from `memfit calibrate`.")
@click.option(
    "--from", "of", metavar="TOOL", help="JOB is a configuration of this tool (see `memfit import`), or auto."
)
@click.option("--full", is_flag=True, help="With --batch, --sweep --json: assumptions and changes too (slower).")
def command(
    ctx: click.Context,
    /,
    *,
    source: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    no_color: bool,
    timeline: bool,
    sweeps: tuple[str, ...],
    batch: str | None,
    calibration: str | None,
    full: bool,
    of: str | None,
    **_: Any,
) -> int:
    """Where the GPU memory of a job goes, and whether it fits.

    MODEL is a name (see `memfit models`), a folder with a config.json or such a file; JOB is a .toml, .yaml or .json
    job file, - one on standard input. Every field of a job has a flag, which wins over the file.

    \b
    Examples:
      memfit estimate llama-3.1-8b --gpu 8xh100 --zero 3 --seq 8k -b 2
      memfit estimate qwen3-30b-a3b --gpu h100 --kind serve --context 32k
      memfit estimate job.toml --sweep seq=2k..128k --sweep micro_batch=1..8
    """
    if [bool(sweeps), batch is not None, timeline].count(True) > 1:
        raise hinted("--sweep, --batch and --timeline cannot be combined", "run them one after the other", ctx)
    if batch is not None:
        return _batch(ctx, source, batch, full, calibration)
    if full and not sweeps:
        raise hinted("--full goes with --batch or --sweep", "a single estimate always is full", ctx)
    if of is not None and source is None:
        raise hinted("--from goes with a file", "for example `memfit estimate axolotl.yaml --from axolotl`", ctx)
    job = given(ctx, source) if of is None or source is None else imported(ctx, source, of)
    if job.empty:
        raise hinted("no model is given", "for example `memfit estimate llama-3.1-8b --gpu 8xh100`", ctx)
    page = make_page(verbose=verbose, no_color=no_color)
    if sweeps:
        return _sweep(page, job, sweeps, as_json=as_json, quiet=quiet, full=full, calibration=calibration)
    from memfit.speed.estimate import estimate

    answer = estimate(job.job(), calibration=_figures(calibration))
    if as_json:
        from memfit.report.json import dumps, result

        document = result(answer)
        if timeline:
            from memfit.report.timeline import moments

            document["timeline"] = moments(answer)
        emit(dumps(document))
    elif quiet:
        from memfit.report.estimate import quiet_text

        emit(quiet_text(page, answer))
    elif timeline:
        from memfit.report.timeline import timeline_text
        from memfit.report.verdict import verdict

        emit("\n".join(verdict(page, answer)) + "\n\n" + timeline_text(page, answer))
    else:
        from memfit.report.estimate import estimate_text

        words = [word for word in ctx.find_root().obj or () if word not in _NOT_REPEATED]
        emit(estimate_text(page, answer, command=shlex.join(["memfit", *words])))
    return 1 if answer.fits is False else 0


def _figures(path: str | None) -> Any:
    if path is None:
        return None
    from memfit.speed.calibration import load

    return load(path)


def _batch(ctx: click.Context, source: str | None, batch: str, full: bool, calibration: str | None) -> int:
    from memfit.cli.batch import run

    if source is not None or not given(ctx, None).empty:
        raise hinted("--batch takes its jobs from the file alone", "leave out the model and the job's flags", ctx)
    return run(batch, full=full, calibration=_figures(calibration))


def _sweep(
    page: Any, job: Given, sweeps: tuple[str, ...], *, as_json: bool, quiet: bool, full: bool, calibration: str | None
) -> int:
    from memfit.cli.axes import run
    from memfit.report.json import dumps
    from memfit.report.sweep import frontier_text, sweep_document, sweep_text

    answer = run(job, sweeps, _figures(calibration))
    if as_json:
        emit(dumps(sweep_document(answer, full=full)))
    else:
        emit(frontier_text(page, answer) if quiet else sweep_text(page, answer))
    return 0 if any(cell.fits is not False for cell in answer.estimates) else 1
