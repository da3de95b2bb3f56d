"""``memfit gpus``: the accelerators that are known by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from memfit.cli.output import emit, make_page, output_options

if TYPE_CHECKING:
    from memfit.hardware import Gpu


@click.command("gpus")
@click.argument("query", metavar="[QUERY]", required=False)
@output_options
def command(*, query: str | None, as_json: bool, quiet: bool, verbose: bool, no_color: bool) -> int:
    """The GPUs that are known by name; with QUERY those whose name, vendor or architecture contains it.

    Any other card is given by its memory: --memory-gib 48.
    """
    from memfit.errors import UnknownNameError
    from memfit.hardware import gpus
    from memfit.report.gpus import gpus_document, gpus_text

    cards = list(gpus())
    if query:
        words = query.lower().replace("_", "-").split()
        found = [card for card in cards if all(word in _text(card) for word in words)]
        if not found:
            names = [n for g in cards for n in (g.name, *g.aliases)]
            raise UnknownNameError("GPU", query[:60], names, hint="`memfit gpus` lists all")
        cards = found
    if as_json:
        from memfit.report.json import dumps

        emit(dumps(gpus_document(cards)))
    elif quiet:
        emit("".join(f"{gpu.name}\n" for gpu in cards))
    else:
        emit(gpus_text(make_page(verbose=verbose, no_color=no_color), cards))
    return 0


def _text(card: Gpu) -> str:
    return " ".join([card.name, card.title, card.vendor, card.kind, card.architecture, *card.aliases]).lower()
