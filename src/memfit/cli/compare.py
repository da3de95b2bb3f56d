"""``memfit compare``: the ledgers of two jobs side by side."""

from __future__ import annotations

from typing import Any

import click

from memfit.cli.jobs import JobCommand, given, job_options
from memfit.cli.output import emit, make_page, output_options


@click.command("compare", cls=JobCommand)
@click.argument("left", metavar="A")
@click.argument("right", metavar="B")
@output_options
@job_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    left: str,
    right: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    no_color: bool,
    **_: Any,
) -> int:
    """The ledgers of two jobs side by side, with the difference.

    A and B are models or job files, as `memfit estimate` takes them; the flags hold for both.

    \b
    Examples:
      memfit compare before.toml after.toml
      memfit compare llama-3.1-8b qwen3-8b --gpu h100 --method lora
    """
    from memfit.speed.estimate import estimate

    a, b = (estimate(given(ctx, source).job()) for source in (left, right))
    page = make_page(verbose=verbose, no_color=no_color)
    if as_json:
        from memfit.report.compare import compare_document
        from memfit.report.json import dumps

        emit(dumps(compare_document(a, b, (left, right))))
    else:
        from memfit.report.compare import compare_text, total_text

        emit(total_text(a, b) if quiet else compare_text(page, a, b, (left, right)))
    return 0
