"""Serving in its plain form: seconds to the first token (prefill) and per further token (decode).

A decode step reads the weights that its tokens touch and the cache of all sequences, or is bound by its products when
the batch is large; collectives and the engine's host time come on top. With continuous batching on one set of GPUs,
prompts of other requests run between a request's tokens. More requests than the engine admits are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from memfit.errors import MemfitError
from memfit.formula import profile as profiles
from memfit.formula.blocks import program
from memfit.formula.dims import Dims, block_atoms, cdiv
from memfit.formula.inference import KV_BITS, step_tokens
from memfit.formula.resolve import Resolved, resolve
from memfit.formula.style import Style as ProgramStyle
from memfit.job import Job
from memfit.models.architecture import Architecture, Block, Moe
from memfit.models.cache import kv_elements_per_token
from memfit.speed.block import Seconds, Shapes, Style, sublayers
from memfit.speed.calibration import Calibration, default
from memfit.speed.data import read
from memfit.speed.kernels import product
from memfit.speed.network import Fabric, fabric
from memfit.speed.numbers import least
from memfit.speed.rates import Rates, rates
from memfit.speed.work import Work, work

PARTS: dict[str, str] = {
    "matmul": "matrix products and the weights they read",
    "attention": "attention and the cache it reads",
    "memory": "memory-bound kernels",
    "tp": "tensor-parallel collectives",
    "ep": "expert-parallel exchange",
    "pp": "transfers between pipeline stages",
    "host": "the engine and its host",
    "refills": "prompts of other requests between two tokens",
}
"""Part of a decode step -> what it is, in the order they are shown."""

LOW_WEIGHTS = {"fp8": "fp8", "mxfp8": "fp8", "nvfp4": "nvfp4", "mxfp4": "nvfp4"}
"""Weights whose products run in that type where the card can; others are expanded to 16 bit on the way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Serving speed of one job.

    Attributes:
        ttft_s: mean seconds from a request to its first token, with ``concurrency`` requests kept running.
        tpot_s: seconds per further token of a sequence.
        tokens_per_s_per_gpu: generated tokens per second over all sequences, by GPU.
        parts: part of ``tpot_s`` -> seconds, in the order of ``PARTS``.
    """

    ttft_s: float
    tpot_s: float
    tokens_per_s_per_gpu: float
    parts: Mapping[str, float]


@lru_cache(maxsize=1024)
def _works(arch: Architecture, eager: bool, plain: bool) -> tuple[tuple[Block, int, Work], ...]:
    """(block, number of layers, its forward pass) of the decoder's kinds; ``plain``: code without fused kernels."""
    how = {} if plain else {"norm": "fused", "mlp": "fused", "rope": "fused"}
    style = ProgramStyle(trained=False, attention="eager" if eager else "flash", **how)  # type: ignore[arg-type]
    out = []
    for block, number in zip(arch.decoder.blocks, arch.decoder.counts(), strict=True):
        if number:
            passes = work(program(block, style), style, fused_softmax=True, early_stop=False, policy="full")
            out.append((block, number, passes))
    return tuple(out)


class _Server:
    def __init__(self, resolved: Resolved, calibration: Calibration | None) -> None:
        v = resolved.values
        if resolved.gpu is None:
            raise MemfitError("the speed of a server needs a GPU", hint="give hardware.gpu, e.g. `--gpu h100`")
        self.arch, self.v, gpu = resolved.arch, v, resolved.gpu
        table = read("engines")
        self.engine = {**table["default"], **table.get(v["framework"], {})}
        base = calibration or default()
        self.c = replace(base, kernel_s=base.kernel_s * self.engine["kernel"])
        weights = v["weights"] or "bf16"
        kind = weights if isinstance(weights, str) else "bpw"
        self.low = kind in LOW_WEIGHTS
        dtype = profiles.dtype(weights)
        self.weight_bytes = dtype.num / dtype.den / 8.0
        self.r: Rates = rates(gpu, LOW_WEIGHTS.get(kind, "bf16"), self.engine["attention"], self.c)
        self.f: Fabric = fabric(gpu, resolved.stated.hardware.gpus_per_node, self.c)
        self.eager = v["attention"] == "eager"
        self.kv_bytes = KV_BITS[v["kv"] or "bf16"] / 8.0
        self.ranks = v["dp"]
        self.mine: int = max(1, -(-(v["concurrency"] or 1) // self.ranks))
        hidden = float(self.mine * self.arch.hidden_size * 2)
        self.hop: float = float(self.f.send(v["tp"], hidden)) * (v["pp"] - 1)

    def run(self, sequences: int, new: int, past: int, *, decode: bool) -> Seconds:
        """One step over ``sequences`` sequences with ``new`` tokens each behind ``past`` in the cache."""
        v, arch = self.v, self.arch
        # experts are spread over the tensor-parallel ranks; a larger ep spreads them over attention's copies too
        copies = max(v["ep"] // v["tp"], 1)
        d = Dims(micro_batch=sequences, seq_len=new, dp=copies, tp=v["tp"], ep=copies)
        tokens = sequences * new
        total = Seconds()
        for block, number, passes in _works(arch, self.eager, bool(self.engine["launches"])):
            atoms = block_atoms(block, arch.decoder, d, tokens, tokens)
            atoms["enc"] = atoms["x"]
            touched = 1.0
            if isinstance(block.ffn, Moe):
                spread = tokens * max(v["ep"] // v["tp"], 1)
                touched = 1.0 - (1.0 - block.ffn.top_k / block.ffn.num_experts) ** spread
            style = Style(low=self.low, weight_bytes=self.weight_bytes, touched=touched)
            shapes = Shapes(self.r, style, atoms, d, tokens, arch.hidden_size, block)
            one = Seconds()
            shapes.run(passes.forward, one, low=True)
            if decode:
                one.parts["attention"] = self._cached(block, sequences, past)
            one.launches = float(passes.forward.launches)
            self._collectives(one, block, d, tokens)
            total.plus(one, number)
        vocab = cdiv(arch.vocab_size, v["tp"])
        total.put("matmul", product(self.r, float(sequences), float(vocab), float(arch.hidden_size)))
        return total

    def _cached(self, block: Block, sequences: int, past: int) -> float:
        """Attention of one new token a sequence: the cache is read once."""
        att = block.attention
        if att is None:
            return 0.0
        per = {b.kind: b for b in kv_elements_per_token(self.arch)}[block.kind]
        # ranks split the heads and hold whole ones; a latent vector is held by every rank
        split = 1 if att.kind == "mla" else min(self.v["tp"], att.num_kv_heads)
        traffic = sequences * per.tokens_kept(past) * per.per_token / split * self.kv_bytes
        heads = cdiv(att.num_heads, self.v["tp"])
        width = att.kv_lora_rank * 2 + att.qk_rope_head_dim if att.kind == "mla" else att.head_dim + att.v_head_dim
        flops = 2.0 * sequences * per.tokens_kept(past) * heads * width
        return float(max(traffic / self.r.read, flops / self.r.attention) + 2 * self.r.kernel_s)

    def _collectives(self, one: Seconds, block: Block, d: Dims, tokens: int) -> None:
        size = float(tokens * self.arch.hidden_size * 2)
        if self.v["tp"] > 1:
            group = self.f.group(self.v["tp"], 1)
            seconds = least(self.f.all_reduce(group, size), self.f.one_shot(group, size))
            one.put("tp", seconds / self.c.contention * sublayers(block))
        if isinstance(block.ffn, Moe) and d.ep > 1:
            group = self.f.group(d.ep, self.v["tp"])
            one.put("ep", self.f.all_to_all(group, size * block.ffn.top_k) / self.c.contention * 2.0)

    def host(self, step: Seconds, each: float) -> float:
        """Host time that shows in a step; ``each``: of a kernel, over that of plain eager code."""
        waits = float(step.launches) * self.c.host_s * NO_GRADIENTS * each - float(step.device)
        return float(self.engine["step_s"]) + max(waits, 0.0)

    def prefill(self, sequences: int, prompt: int) -> Seconds:
        """The step that reads the prompts of ``sequences`` requests."""
        return self.run(sequences, prompt, 0, decode=False)

    def whole(self, step: Seconds, host: float) -> float:
        """Seconds of a step that reads prompts; ``host``: as `host` takes it."""
        return float(step.device) + self.host(step, host) + self.hop

    def first(self, single: Seconds, prompt: int, output: int, own: float) -> float:
        """Seconds from a request to its first token.

        Args:
            single: the step that reads one prompt.
            prompt, output: tokens of a request.
            own: seconds of a decode step, without prompts between.
        """
        around, each = float(self.engine["request_s"]), float(self.engine["prompt_host"])
        if not self.engine["refills"]:
            return around + self.whole(self.prefill(self.mine, prompt), each)
        alone = self.whole(single, each)
        if self.mine == 1:
            return around + alone
        # at the start all come at once, and as many as fit share a step
        together = max(1, min(self.mine, step_tokens(self.v, self.mine * prompt) // prompt))
        steps = -(-self.mine // together)
        burst = (steps + 1) / 2 * self.whole(self.prefill(together, prompt), each)
        # later, one comes when another ends: it waits for the step that runs, and for prompts before its own
        queue = min(alone / (2 * output * own), 1.0) * (self.mine - 1) * alone
        return around + AT_ONCE * burst + (1 - AT_ONCE) * (alone + own / 2 + queue)


AT_ONCE = 0.1
"""Share of the requests that come at once: load generators keep ``concurrency`` requests running and send about ten
times as many, the first ones together. The others arrive one by one, and prompts queue as in M/D/1: with n requests of
prompt time p that decode for d, the load of prompts to everything else is n p / d, and the wait p / 2 times that."""

NO_GRADIENTS = 0.55
"""Host time of an operation that records nothing for a backward pass over one that does: 28 us against 50."""


def lengths(resolved: Resolved) -> tuple[int, int]:
    """Tokens of the prompt and of the answer that are timed: half of the context each where the job states neither.

    Memory is that of the longest prompt: a context that is all prompt would have no tokens to time.
    """
    v, stated = resolved.values, resolved.stated.task
    if not stated.prompt and not stated.output:
        return max(1, v["context"] - v["context"] // 2), max(1, v["context"] // 2)
    prompt = max(1, min(v["prompt"] or v["context"] - (v["output"] or 0), v["context"]))
    return prompt, max(1, v["output"] or v["context"] - prompt)


def latency(job: Job | Resolved, *, calibration: Calibration | None = None) -> Latency:
    """Seconds to the first token and per further token.

    Raises:
        MemfitError: the job names no card, is not a serving job, cannot be read, or its model is an encoder.
    """
    resolved = job if isinstance(job, Resolved) else resolve(job)
    v = resolved.values
    if v["kind"] != "serve":
        raise MemfitError("a training job has no latency", hint="see `memfit.speed.step_time`")
    if not resolved.arch.causal:
        raise MemfitError("an encoder makes no tokens one after the other")
    server = _Server(resolved, calibration)
    prompt, output = lengths(resolved)
    step = server.run(server.mine, 1, prompt + output // 2, decode=True)
    parts = dict.fromkeys(PARTS, 0.0)
    for name in ("matmul", "attention", "memory", "tp", "ep"):
        parts[name] = float(step.parts[name])
    parts["pp"] = server.hop
    parts["host"] = server.host(step, float(server.engine["launches"]))
    single = server.prefill(1, prompt)
    ttft = server.first(single, prompt, output, sum(parts.values()))
    if server.engine["refills"]:
        # while a request makes its tokens, each of the others starts once, beside decoding
        parts["refills"] = (server.mine - 1) * server.whole(single, 0.0) / output
    tpot = 0.0
    for value in parts.values():
        tpot = tpot + value
    gpus = v["tp"] * v["pp"] * v["cp"] * v["dp"]
    return Latency(
        ttft_s=ttft,
        tpot_s=tpot,
        tokens_per_s_per_gpu=server.mine * v["dp"] / tpot / gpus,
        parts=parts,
    )
