"""``memfit models``: the catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from memfit.cli.output import emit, make_page, output_options

if TYPE_CHECKING:
    from memfit.models.catalog import Entry


@click.command("models")
@click.argument("query", metavar="[QUERY]", required=False)
@output_options
def command(*, query: str | None, as_json: bool, quiet: bool, verbose: bool, no_color: bool) -> int:
    """The models that are known by name; with QUERY those whose name, hub id or type contains it.

    Any other model is given as a folder with its config.json, or as that file.
    """
    from memfit.errors import UnknownNameError
    from memfit.models import catalog
    from memfit.report.models import list_document, list_text

    del verbose
    entries = [entry for name in catalog.names() if (entry := catalog.lookup(name)) is not None]
    if query:
        words = query.lower().replace("_", "-").split()
        entries = [e for e in entries if all(word in _text(e) for word in words)]
        if not entries:
            near = catalog.nearest(query)
            raise UnknownNameError("model", query[:60], near=near, hint="`memfit models` lists all")
    if as_json:
        from memfit.report.json import dumps

        emit(dumps(list_document(entries)))
    elif quiet:
        emit("".join(f"{entry.name}\n" for entry in entries))
    else:
        emit(list_text(make_page(no_color=no_color), entries))
    return 0


def _text(entry: Entry) -> str:
    kind = str(entry.config.get("model_type", ""))
    return " ".join([entry.name, entry.repo, *entry.aliases, kind]).lower().replace("_", "-")
