"""``memfit diff``: two jobs side by side, and what each lever that differs does."""

from __future__ import annotations

from typing import Any

import click

from memfit.cli.jobs import given, job_command
from memfit.cli.output import emit, make_page


@job_command("diff", source=None)
@click.argument("left", metavar="A")
@click.argument("right", metavar="B")
@click.option("--price", metavar="USD", help="What a GPU-hour costs you; else the snapshot's price of each card.")
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
    price: str | None,
    **_: Any,
) -> int:
    """Two jobs side by side: bytes, time and cost, and what each lever that differs does.

    A and B are models or job files, as `memfit estimate` takes them; the flags hold for both.

    \b
    Examples:
      memfit diff before.toml after.toml
      memfit diff llama-3.1-8b qwen3-8b --gpu h100 --method lora
    """
    from memfit.cli.plan import dollars
    from memfit.formula.estimate import estimate
    from memfit.planner.difference import diff

    a, b = (estimate(given(ctx, source).job()) for source in (left, right))
    found = diff(a, b, price=None if price is None else dollars(price, "--price"))
    page = make_page(verbose=verbose, no_color=no_color)
    if as_json:
        from memfit.report.diff import diff_document
        from memfit.report.json import dumps

        emit(dumps(diff_document(found, (left, right))))
    else:
        from memfit.report.diff import diff_text, total_text

        emit(total_text(found) if quiet else diff_text(page, found, (left, right)))
    return 0
