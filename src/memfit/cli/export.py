"""``memfit export``: a job as complete files of the tool that will run it."""

from __future__ import annotations

from typing import Any

import click

from memfit.cli.jobs import given, job_command
from memfit.cli.output import emit, hinted, make_page


@job_command("export")
@click.option("--to", "to", metavar="TARGET", help="The tool: see --list.")
@click.option("--out", metavar="FOLDER", help="Write the files here; without it they are shown.")
@click.option("--force", is_flag=True, help="Write over files that exist.")
@click.option("--program", metavar="TARGET", help="What slurm, skypilot and k8s start; by the framework without it.")
@click.option("--list", "listed", is_flag=True, help="List the targets.")
def command(
    ctx: click.Context,
    /,
    *,
    source: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    no_color: bool,
    to: str | None,
    out: str | None,
    force: bool,
    program: str | None,
    listed: bool,
    **_: Any,
) -> int:
    """A job as complete files of the tool that will run it, with what was chosen and why.

    MODEL and JOB are as for `memfit estimate`; - reads a job from standard input. What the tool has no words for is an
    error that names the field.

    \b
    Examples:
      memfit export job.toml --to axolotl --out run
      memfit export llama-3.1-8b --gpu 8xh100 --zero 3 -f torch --to fsdp2
      memfit export job.toml --to slurm --program torchtitan --out run
    """
    from memfit.export import NAMES, export
    from memfit.report.export import export_document, export_text, targets_document, targets_text

    page = make_page(verbose=verbose, no_color=no_color)
    if listed:
        from memfit.report.json import dumps

        emit(dumps(targets_document()) if as_json else targets_text(page))
        return 0
    if to is None:
        raise hinted("no target is given", f"--to one of {', '.join(NAMES)}", ctx)
    job = given(ctx, source)
    if job.empty:
        raise hinted("no job is given", "for example `memfit export job.toml --to axolotl --out run`", ctx)
    answer = export(job.job(), to, program=program)
    paths: tuple[Any, ...] = ()
    if out is not None:
        from memfit.export.folder import write_files

        paths = write_files(answer.files, out, force=force)
    if as_json:
        from memfit.report.json import dumps

        emit(dumps(export_document(answer, paths)))
        return 0
    for warning in answer.warnings:
        click.echo(f"warning: {warning}", err=True)
    emit(export_text(page, answer, paths, quiet=quiet))
    return 0
