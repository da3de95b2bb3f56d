"""Inference in its simple form: weights, key/value cache, logits and the running block of a plain transformers run.

Engines that pre-allocate (vLLM, SGLang, llama.cpp ...) follow rules of their own; for them this gives the need of the
model, not the reservation of the engine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from memfit.formula import profile as profiles
from memfit.formula.blocks import program
from memfit.formula.dims import Dims, block_atoms, cdiv, highest
from memfit.formula.resolve import Resolved
from memfit.formula.style import Style
from memfit.formula.tape import Form
from memfit.formula.weights import Held, Training, held, local, num_kv
from memfit.ledger import Component
from memfit.models.architecture import Architecture, Block, Tensor
from memfit.models.cache import kv_elements_per_token, state_elements
from memfit.models.quantised import left_out, stored_as
from memfit.units import MIB

ENTRIES: dict[str, tuple[Component, str]] = {
    "weights": ("parameters", "weights"),
    "kv": ("kv_cache", "keys and values"),
    "state": ("state", "recurrent state"),
    "block": ("activations", "running block"),
    "logits": ("logits", "logits"),
    "tables": ("workspace", "position tables"),
    "cublas": ("workspace", "cuBLAS workspace"),
}
"""Entry -> (component, what it is), in the order a ledger shows them."""

KV_BITS = {
    "bf16": 16, "fp16": 16, "fp32": 32, "fp8": 8, "int8": 8, "int4": 4.5, "nvfp4": 4.5,
    "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5, "iq4_nl": 4.5,
}  # fmt: skip
"""Bits per cached element: GGUF blocks of 32 carry a 16-bit scale (``_1``: and a 16-bit minimum; q5: 4 bytes of fifth
bits), int4 a 16-bit scale and zero point per 64 elements, nvfp4 an 8-bit scale per 16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """What serving needs, in bytes on one rank.

    Attributes:
        weights: stored weights.
        kv: keys and values of all sequences at full context; ``kv_per_token`` of one more token of one sequence.
        state: recurrent states of all sequences.
        activation: temporaries of the running block at the largest step; ``logits`` output logits of that step.
        tables: precomputed position tables.
        warnings: what the simple form leaves out.
    """

    weights: int
    kv: int
    kv_per_token: int
    state: int
    activation: int
    logits: int
    tables: int
    workspace: int
    warnings: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Allocated bytes at the peak."""
        return self.weights + self.kv + self.state + max(self.activation, self.logits) + self.tables + self.workspace


@cache
def _data() -> dict[str, Any]:
    return profiles.read_data("inference.toml")


def traits(framework_version: str | None) -> dict[str, Any]:
    """The rows of ``data/inference.toml`` that apply to a version text, merged."""
    text = (framework_version or "").lower()
    out: dict[str, Any] = {}
    for row in _data()["row"]:
        at = text.find(row["match"])
        if at < 0:
            continue
        if "before" in row:
            stated = re.search(r"(\d{1,3})\.(\d{1,3})", text[at:])
            limit = tuple(int(n) for n in row["before"].split("."))
            if stated is None or (int(stated.group(1)), int(stated.group(2))) >= limit:
                continue
        out |= {k: v for k, v in row.items() if k not in ("match", "before", "source")}
    return out


@lru_cache(maxsize=1024)
def _stored(arch: Architecture, whole: bool, own: bool) -> tuple[tuple[Held, int, int], ...]:
    """(weights, how many times, kv heads) of everything, split into quantised and not.

    ``own``: as the checkpoint itself is quantised, with the modules that it leaves out and routers in 16 bit.
    """
    kept = left_out(arch) if own else lambda _: False

    def sort(tensors: tuple[Tensor, ...], prefix: str = "") -> Held:
        def quantise(t: Tensor) -> bool:
            if whole:
                return True
            if not t.linear or t.part in ("head", "embedding") or (own and t.part == "router"):
                return False
            return not kept(prefix + t.name)

        return held(tensors, Training(full=False), quantise=quantise)

    out: list[tuple[Held, int, int]] = []
    for stack in (arch.decoder, *arch.towers):
        if own:
            alike: dict[tuple[int, Held], int] = {}
            for index, kind in enumerate(stack.layout):
                key = kind, sort(stack.blocks[kind].tensors, f"{stack.prefix.format(index)}.")
                alike[key] = alike.get(key, 0) + 1
            out += [(parts, number, num_kv(stack.blocks[kind])) for (kind, parts), number in alike.items()]
        else:
            for block, number in zip(stack.blocks, stack.counts(), strict=True):
                out.append((sort(block.tensors), number, num_kv(block)))
        out.append((sort(stack.extra), 1, 1 << 30))
    out.append((sort(arch.outer), 1, 1 << 30))
    return tuple(out)


def weights_bytes(arch: Architecture, weights: Any, d: Dims, pp: int, *, gguf: bool = False) -> int:
    """Stored weights on one rank: linear layers in the storage dtype, the rest in 16 bit where the format says so."""
    dtype = profiles.dtype(weights)
    rest = 4 if dtype.name == "fp32" else 2
    total: int = 0
    whole = dtype.keep16 == "none" and (gguf or dtype.name != "bpw")
    for parts, number, kv in _stored(arch, whole, not whole and dtype.name == stored_as(arch)):
        total += dtype.bytes_of(local(parts.quantised, d, kv)) * number + local(parts.frozen, d, kv) * number * rest
    return int(cdiv(total, pp))


def _qkv_bytes(arch: Architecture, weights: Any) -> int:
    """Stored bytes of all query, key and value projections."""
    numel = 0
    for block, number in zip(arch.decoder.blocks, arch.decoder.counts(), strict=True):
        inputs = (t for t in block.tensors if t.linear and t.part == "attention" and t.tp_dim == 0)
        numel += number * sum(t.numel for t in inputs)
    return int(profiles.dtype(weights).bytes_of(numel))


@lru_cache(maxsize=1024)
def _programs(arch: Architecture, style: Style) -> tuple[tuple[Block, tuple[Form, ...]], ...]:
    return tuple((block, program(block, style).inference) for block in arch.decoder.blocks)


def _block_peak(arch: Architecture, d: Dims, tokens: int, style: Style) -> int:
    best = 0
    for block, forms in _programs(arch, style):
        atoms = block_atoms(block, arch.decoder, d, tokens, tokens)
        atoms["enc"] = atoms["x"]
        best = max(best, highest(forms, atoms))
    return best


def step_tokens(values: Mapping[str, Any], tokens: int) -> int:
    """Tokens of one scheduler step when ``tokens`` wait: the job's, else the engine's own limit."""
    return int(min(tokens, values["batch_tokens"] or _data()["step_tokens"].get(values["framework"], tokens)))


def serving(resolved: Resolved) -> Serving:
    """The memory of a plain inference run."""
    v, arch = resolved.values, resolved.arch
    sequences = v["concurrency"] or 1
    context = v["context"]
    prompt = min(v["prompt"] or max(context - (v["output"] or 0), 1), context)
    d = Dims(micro_batch=sequences, seq_len=prompt, tp=v["tp"])
    warnings: list[str] = []
    framework = v["framework"]
    if framework not in ("transformers", "torch", "exllama"):
        what = "reserves memory by rules of its own; this is what the model needs, not its pool"
        warnings.append(f"`{framework}` {what}")
    kv_bits = KV_BITS[v["kv"] or "bf16"]
    kv_elements = 0
    per_token = 0
    quirks = traits(v["framework_version"])
    cached = v["output"] if quirks.get("cache") == "output" and v["output"] else context
    # ranks split the heads and hold whole ones; the latent vector of MLA is held by every rank
    heads = {b.kind: b.attention.num_kv_heads for b in arch.decoder.blocks if b.attention and b.attention.kind != "mla"}
    for block in kv_elements_per_token(arch):
        whole = heads.get(block.kind, 1)
        each = block.per_token // whole * cdiv(whole, v["tp"])
        kv_elements += block.layers * each * block.tokens_kept(cached)
        per_token += block.layers * each
    state, conv = state_elements(arch)
    eager = v["attention"] == "eager" or quirks.get("attention") == "eager"
    style = Style(trained=False, attention="eager" if eager else "flash", rope="composite")
    tokens = sequences * prompt
    one = Dims(micro_batch=1, seq_len=prompt, tp=v["tp"])
    activation = _block_peak(arch, one, step_tokens(v, tokens), style)
    vocab = arch.vocab_size
    logits = tokens * vocab * 6 if quirks.get("logits") == "prompt" else sequences * vocab * 6
    if quirks.get("logits") == "forward":
        logits = tokens * vocab * 2
    tables = 0
    if quirks.get("tables") and arch.max_positions:
        tables = sum(
            2 * 2 * arch.max_positions * b.attention.rotary_dim * n
            for b, n in zip(arch.decoder.blocks, arch.decoder.counts(), strict=True)
            if b.attention and b.attention.rotary_dim
        )
    weights = weights_bytes(arch, v["weights"] or "bf16", d, v["pp"], gguf=framework in _data()["gguf"]["frameworks"])
    weights += cdiv(_qkv_bytes(arch, v["weights"] or "bf16") * quirks.get("qkv_copies", 0), v["pp"] * v["tp"])
    bytes_kv = int(kv_elements * kv_bits // 8)
    return Serving(
        weights=weights,
        kv=cdiv(bytes_kv * sequences, v["pp"]),
        kv_per_token=int(per_token * kv_bits // 8),
        state=cdiv((state * 4 + conv * 2) * sequences, v["pp"] * v["tp"]),
        activation=activation,
        logits=logits,
        tables=tables,
        workspace=(32 if resolved.gpu and (resolved.gpu.compute_capability or (0, 0)) >= (9, 0) else 9) * MIB,
        warnings=tuple(warnings),
    )
