"""Models as text and data: the catalog as a list, one architecture in detail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memfit.models import Architecture, Attention, Block, Moe, Stack
from memfit.models.cache import kv_bytes_per_token, state_elements
from memfit.models.catalog import Entry
from memfit.report.json import SCHEMA_VERSION
from memfit.report.page import Cell, Column, Page, Row, clean, paragraph, table
from memfit.units import KIB, format_bytes, format_count

_CACHE_BYTES = 2  # an element of a 16-bit cache


def list_document(entries: Sequence[Entry]) -> dict[str, Any]:
    """Catalog entries as data."""
    rows = [
        {
            "name": e.name,
            "params": e.params,
            "repo": e.repo,
            "model_type": e.config.get("model_type"),
            "aliases": list(e.aliases),
            "params_source": e.params_source,
            "source": e.source,
        }
        for e in entries
    ]
    return {"schema_version": SCHEMA_VERSION, "models": rows}


def list_text(page: Page, entries: Sequence[Entry]) -> str:
    """One line a model."""
    rows: list[Row] = [
        [e.name, format_count(e.params), clean(e.config.get("model_type", "")), Cell(e.repo, "dim")] for e in entries
    ]
    columns = [Column("model"), Column("params", "right"), Column("type", flex=True), Column("hub id", flex=True)]
    return "\n".join([*table(page, columns, rows), "", f"{len(entries)} models"]) + "\n"


def model_document(name: str, arch: Architecture, origin: str, entry: Entry | None) -> dict[str, Any]:
    """One architecture as data."""
    state, convolution = state_elements(arch)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "source": origin,
        "config_source": None if entry is None else entry.source,
        "model_type": arch.model_type,
        "params": arch.num_params,
        "active_params": arch.active_params,
        "published_params": None if entry is None else entry.published,
        "hidden_size": arch.hidden_size,
        "vocab_size": arch.vocab_size,
        "tied": arch.tied,
        "max_positions": arch.max_positions,
        "dtype": arch.dtype,
        "kv_bytes_per_token": kv_bytes_per_token(arch, _CACHE_BYTES),
        "state_elements": state + convolution,
        "stacks": [_stack(s) for s in (*arch.towers, arch.decoder, *([arch.mtp] if arch.mtp else []))],
        "unknowns": list(arch.unknowns),
    }


def _stack(stack: Stack) -> dict[str, Any]:
    return {
        "name": stack.name,
        "layers": stack.num_layers,
        "hidden_size": stack.hidden_size,
        "params": stack.num_params,
        "kinds": [
            {"kind": block.kind, "layers": count, "params": block.num_params, "active_params": block.active_params}
            for block, count in zip(stack.blocks, stack.counts(), strict=True)
        ],
    }


def model_text(page: Page, name: str, arch: Architecture, origin: str, entry: Entry | None) -> str:
    """One architecture: exact counts, the cache of a token, layers by kind."""
    lines = paragraph(page, f"{clean(name)}: {_kind(arch)}")
    lines += _facts(page, _figures(arch, origin, entry))
    for stack in (*arch.towers, arch.decoder, *([arch.mtp] if arch.mtp else [])):
        lines += ["", *_layers(page, stack)]
    lines += [""] if arch.unknowns else []
    for text in arch.unknowns:
        lines += paragraph(page, f"warning: {clean(text)}")
    return "\n".join(lines) + "\n"


def _kind(arch: Architecture) -> str:
    width = f"hidden {arch.hidden_size}, vocabulary {arch.vocab_size}"
    return f"{clean(arch.model_type)}, {arch.num_layers} layers, {width}{', tied head' if arch.tied else ''}"


def _figures(arch: Architecture, origin: str, entry: Entry | None) -> Mapping[str, str]:
    figures = {"parameters": f"{arch.num_params:,} ({format_count(arch.num_params)})"}
    if arch.active_params != arch.num_params:
        figures["active per token"] = f"{arch.active_params:,} ({format_count(arch.active_params)})"
    if entry is not None and entry.published not in (None, arch.num_params):
        figures["published"] = f"{entry.published:,} {entry.published_note}".rstrip()
    per_token = kv_bytes_per_token(arch, _CACHE_BYTES)
    if per_token:
        figures["cache per token"] = f"{per_token:,} bytes ({per_token / KIB:.2f} KiB) in 16 bit"
    state, convolution = state_elements(arch)
    if state or convolution:
        figures["state per sequence"] = f"{state + convolution:,} elements"
    figures["weights in 16 bit"] = format_bytes(arch.num_params * 2)
    if arch.max_positions:
        figures["context"] = f"{arch.max_positions} tokens"
    if arch.dtype:
        figures["stored as"] = clean(arch.dtype)
    figures["from"] = clean(origin)
    if entry is not None:
        figures["source"] = clean(entry.source)
    return figures


def _facts(page: Page, figures: Mapping[str, str]) -> list[str]:
    return table(page, [Column(""), Column("", flex=True)], [[k, v] for k, v in figures.items()], indent="  ")


def _layers(page: Page, stack: Stack) -> list[str]:
    rows = [
        [str(count), block.kind, format_count(block.num_params), _block(block)]
        for block, count in zip(stack.blocks, stack.counts(), strict=True)
        if count
    ]
    columns = [
        Column("layers", "right"),
        Column(stack.name, flex=True),
        Column("params", "right"),
        Column("", flex=True),
    ]
    return table(page, columns, rows)


def _block(block: Block) -> str:
    words = []
    if block.attention is not None:
        words.append(_attention(block.attention))
    if block.recurrent is not None:
        words.append(f"{block.recurrent.kind} inner {block.recurrent.inner}")
    if isinstance(block.ffn, Moe):
        moe = block.ffn
        shared = f", shared {moe.shared_intermediate}" if moe.shared_intermediate else ""
        words.append(f"{moe.top_k} of {moe.num_experts} experts of {moe.intermediate}{shared}")
    elif block.ffn is not None:
        words.append(f"mlp {block.ffn.intermediate}{' gated' if block.ffn.gated else ''}")
    return "; ".join(words)


def _attention(a: Attention) -> str:
    if a.kind == "mla":
        return f"mla {a.num_heads} heads, latent {a.kv_lora_rank} + {a.qk_rope_head_dim}"
    text = f"{a.num_heads} heads, {a.num_kv_heads} kv x {a.head_dim}"
    return f"{text}, window {a.window}" if a.window else text
