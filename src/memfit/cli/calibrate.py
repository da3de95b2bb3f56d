"""``memfit calibrate``: the figures of the time model refined by measured runs."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import click

from memfit.cli.output import emit, make_page, output_options
from memfit.errors import InputFileError


@click.command("calibrate")
@click.argument("records", nargs=-1, required=True, metavar="RECORDS...")
@click.option(
    "--output", "-o", default="calibration.toml", metavar="FILE", help="Where the figures go (calibration.toml)."
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@output_options
def command(
    *, records: tuple[str, ...], output: str, force: bool, as_json: bool, quiet: bool, verbose: bool, no_color: bool
) -> int:
    """The figures of the time model refined by measured runs.

    RECORDS are files of JSON lines: each has a `job` and under `measured` the `tokens_per_s_per_gpu` or the `step_s`
    of its run. The figures are written to a file that `memfit estimate --calibration FILE` reads.

    \b
    Examples:
      memfit calibrate runs.jsonl
      memfit estimate job.toml --calibration calibration.toml
    """
    from memfit.report.calibrate import calibrate_text
    from memfit.report.json import dumps
    from memfit.speed.fit import document, fit, read_runs

    if not force and Path(output).exists():
        raise InputFileError(f"`{output[:200]}` exists", hint="name another file with -o, or give --force")
    runs, skipped = read_runs(records)
    found = fit(runs, skipped)
    _write(output, document(found))
    if as_json:
        emit(dumps({"schema_version": 1, "file": output, **document(found), "skipped": [list(s) for s in skipped]}))
    elif quiet:
        emit(f"{fmean(map(abs, found.before)):.1%} -> {fmean(map(abs, found.after)):.1%}\n")
    else:
        emit(calibrate_text(make_page(verbose=verbose, no_color=no_color), found, output))
    return 0


def _write(path: str, content: dict[str, object]) -> None:
    import tomli_w

    try:
        Path(path).write_text(tomli_w.dumps(content), encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        raise InputFileError(f"cannot write `{path[:200]}`: {reason}") from None
