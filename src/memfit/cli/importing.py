"""``memfit import``: other tools' configurations as a job."""

from __future__ import annotations

from typing import Any

import click

from memfit.cli.jobs import given, job_command
from memfit.cli.output import emit, hinted


@job_command("import", source=None)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--from", "of", metavar="TOOL", help="Whose configuration it is; found by its keys without this.")
@click.option("--yaml", is_flag=True, help="Write YAML in place of TOML.")
def command(
    ctx: click.Context,
    /,
    *,
    files: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    no_color: bool,
    of: str | None,
    yaml: bool,
    **_: Any,
) -> int:
    """Other tools' configurations as a job.

    Read are accelerate, transformers, TRL, DeepSpeed, axolotl, LLaMA-Factory and torchtitan. Several FILEs
    that belong together make one job; the first wins. What was not understood is said on standard error.
    Flags of the job win over the files: most configurations do not say which card they run on.

    \b
    Examples:
      memfit import axolotl.yaml --gpu 8xh100 > job.toml
      memfit import accelerate.yaml training.yaml | memfit estimate -
    """
    del verbose, no_color
    if as_json and yaml:
        raise hinted("a job is written in one format", "choose one of --json, --yaml", ctx)
    from memfit.export.importing import import_files
    from memfit.job import dumps

    asked = given(ctx, None)
    found = import_files(files, of=of, overrides=asked.overrides)
    if not quiet:
        if found.job.model.name is None and found.job.model.config is None:
            click.echo("warning: the model is not stated: --model names it", err=True)
        for warning in found.warnings:
            click.echo(f"warning: {warning}", err=True)
    emit(dumps(found.job, "json" if as_json else "yaml" if yaml else "toml"))
    return 0
