"""``memfit job``: a job with every value filled in, where each comes from, and as a document."""

from __future__ import annotations

from typing import Any

import click

from memfit.cli.jobs import given, job_command
from memfit.cli.output import emit, hinted, make_page


@job_command("job")
@click.option("--toml", is_flag=True, help="Write the job as a TOML document.")
@click.option("--yaml", is_flag=True, help="Write the job as a YAML document.")
@click.option("--stated", is_flag=True, help="In the document: only what was stated, without defaults.")
@click.option("--schema", is_flag=True, help="Write the JSON Schema of job documents, for editors.")
def command(
    ctx: click.Context,
    /,
    *,
    source: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    no_color: bool,
    toml: bool,
    yaml: bool,
    stated: bool,
    schema: bool,
    **_: Any,
) -> int:
    """A job with every value filled in, and where each comes from: stated, profile, derived or default.

    With --toml, --yaml or --json it is written as a document that every command takes.

    \b
    Examples:
      memfit job llama-3.1-8b --gpu 8xh100 --zero 3
      memfit job llama-3.1-8b --gpu 8xh100 --zero 3 --toml --stated > job.toml
    """
    from memfit.formula.resolve import defaults_of
    from memfit.job import complete, describe, dumps
    from memfit.report.job import job_text, resolved_job

    formats = [name for name, wanted in (("toml", toml), ("yaml", yaml), ("json", as_json)) if wanted]
    if schema:
        from memfit.job import schema as job_schema
        from memfit.report.json import dumps as dumps_json

        emit(dumps_json(job_schema()))
        return 0
    if len(formats) > 1:
        raise hinted("a job is written in one format", f"choose one of {', '.join('--' + f for f in formats)}", ctx)
    if stated and not formats:
        raise hinted("--stated goes with --toml, --yaml or --json", "add one of them", ctx)
    job = given(ctx, source).job()
    completed = complete(job, defaults_of(job.strategy))
    rows = describe(completed)
    if formats:
        emit(dumps(job if stated else resolved_job(completed, rows), formats[0]))
        return 0
    page = make_page(verbose=verbose, no_color=no_color)
    emit(job_text(page, completed, [row for row in rows if row.origin == "stated"] if quiet else rows))
    return 0
