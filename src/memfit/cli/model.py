"""``memfit model``: one model in detail."""

from __future__ import annotations

import click

from memfit.cli.output import emit, make_page, output_options


@click.command("model")
@click.argument("name", metavar="NAME|PATH")
@output_options
@click.option("--as", "as_family", metavar="FAMILY", help="Read the configuration as this model_type.")
def command(*, name: str, as_json: bool, quiet: bool, verbose: bool, no_color: bool, as_family: str | None) -> int:
    """One model: exact parameters in all and active, cache bytes per token, layers by kind.

    NAME|PATH is a name (see `memfit models`), a folder with a config.json, or such a file.
    """
    from memfit.models import catalog, resolve
    from memfit.report.models import model_document, model_text

    del verbose
    arch, origin = resolve(name, as_family=as_family)
    entry = catalog.lookup(name) if origin.startswith("catalog") else None
    if as_json:
        from memfit.report.json import dumps

        emit(dumps(model_document(name, arch, origin, entry)))
    elif quiet:
        emit(f"{arch.num_params}\n")
    else:
        emit(model_text(make_page(no_color=no_color), name, arch, origin, entry))
    return 0
