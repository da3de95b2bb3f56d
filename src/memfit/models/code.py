"""How the classes of transformers compute their blocks: the rows of ``code.toml`` put on an architecture."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from memfit.models.architecture import Architecture, Code, Stack


@cache
def rows() -> dict[str, dict[str, Any]]:
    """model_type -> the fields of ``Code`` that differ from Llama's."""
    table = tomllib.loads(files("memfit.models").joinpath("code.toml").read_text("utf-8"))
    out: dict[str, dict[str, Any]] = {}
    for row in table["code"]:
        for name in row["families"]:
            out.setdefault(name, {}).update({k: v for k, v in row.items() if k not in ("families", "source")})
    return out


def with_code(arch: Architecture) -> Architecture:
    """The architecture with the code of its family on the blocks of the text stacks."""
    fields = rows().get(arch.model_type)
    if not fields:
        return arch
    code = Code(**fields)

    def coded(stack: Stack) -> Stack:
        return replace(stack, blocks=tuple(replace(b, code=code) for b in stack.blocks))

    towers = tuple(coded(s) if s.tokens == 0 and s.name in ("encoder", "decoder") else s for s in arch.towers)
    return replace(arch, decoder=coded(arch.decoder), towers=towers)
