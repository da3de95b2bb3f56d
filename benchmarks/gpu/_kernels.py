"""Tables of kernels: what a matrix product, an attention, a copy or a launch costs, by shape.

Each function yields JSON-ready rows as it goes, so that a table that is cut short keeps what it has. Times are the
median of ``REPEATS`` groups. ``us`` is the kernel alone: a group of launches replayed as a CUDA graph, so that the
processor takes no part; ``eager_us`` the same launches from Python. Operands rotate over copies that together exceed
the card's second-level cache, because in a model no operand is there from the last call.
Imported by the worker only, once torch is there.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from _meter import GIB, Meter

REPEATS = 7
GROUP_S = 0.004
"""A group of launches takes about so long, so that the clock of the card does not matter."""
CACHE_BYTES = 256 << 20
"""Operands rotate over so many bytes: more than any second-level cache so far."""

LAYERS = {
    "llama-3.1-8b": {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "gate": (14336, 4096),
                     "down": (4096, 14336), "head": (128256, 4096)},
    "llama-3.2-1b": {"q": (2048, 2048), "kv": (512, 2048), "gate": (8192, 2048), "down": (2048, 8192),
                     "head": (128256, 2048)},
    "llama-3.1-70b": {"q": (8192, 8192), "gate": (28672, 8192), "down": (8192, 28672)},
    "tp8 of llama-3.1-70b": {"q": (1024, 8192), "gate": (3584, 8192), "down": (8192, 3584)},
    "expert of qwen3-30b-a3b": {"gate": (768, 2048), "down": (2048, 768)},
}  # fmt: skip
"""Model -> product -> (outputs, inputs) of its linear layers; widths of the public config.json files."""
TOKENS = (1, 8, 64, 256, 1024, 4096, 16384)
SQUARES = (128, 256, 512, 1024, 2048, 4096, 8192)
ATTENTIONS = (
    # batch, query heads, key heads, query length, key length, head dimension
    (1, 32, 8, 512, 512, 128), (1, 32, 8, 1024, 1024, 128), (1, 32, 8, 2048, 2048, 128), (1, 32, 8, 4096, 4096, 128),
    (1, 32, 8, 8192, 8192, 128), (1, 32, 8, 16384, 16384, 128), (8, 32, 8, 1024, 1024, 128),
    (1, 32, 8, 4096, 4096, 64), (1, 16, 16, 2048, 2048, 64), (4, 25, 25, 1024, 1024, 64), (1, 8, 4, 4096, 4096, 256),
    (1, 32, 8, 1, 1024, 128), (1, 32, 8, 1, 8192, 128), (16, 32, 8, 1, 4096, 128), (64, 32, 8, 1, 2048, 128),
)  # fmt: skip
COPY_BYTES = tuple(1 << n for n in (10, 14, 18, 20, 22, 24, 26, 28, 30))

Rows = Iterator[dict[str, Any]]


def timed(call: Callable[[int], Any], meter: Meter, *, graph: bool = True) -> dict[str, float]:
    """Microseconds of one launch of ``call(i)``: ``us`` (with ``graph``) and ``eager_us``, with the fastest group."""
    for i in range(2):
        call(i)
    once = max(meter.seconds(lambda: call(0)), 1e-6)
    n = max(1, min(200, int(GROUP_S / once))) if not meter.smoke else 1

    def group() -> None:
        for i in range(n):
            call(i)

    repeats = REPEATS if not meter.smoke else 1
    eager = [meter.seconds(group) / n for _ in range(repeats)]
    out = {"eager_us": statistics.median(eager) * 1e6, "eager_min_us": min(eager) * 1e6}
    replay = _graph(group) if graph and meter.device == "cuda" else None
    if replay is not None:
        replay()
        alone = [meter.seconds(replay) / n for _ in range(repeats)]
        out |= {"us": statistics.median(alone) * 1e6, "min_us": min(alone) * 1e6}
    return {name: round(value, 3) for name, value in out.items()}


def _graph(group: Callable[[], None]) -> Callable[[], None] | None:
    """The launches as a CUDA graph; None when they cannot be captured."""
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            group()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def _copies(make: Callable[[], torch.Tensor], least: int = 1) -> list[torch.Tensor]:
    """Copies of an operand that together exceed the cache, at most 64."""
    first = make()
    size = max(1, first.numel() * first.element_size())
    return [first, *(make() for _ in range(max(least, min(64, CACHE_BYTES // size)) - 1))]


def _best(times: dict[str, float]) -> float:
    return times.get("us", times["eager_us"]) * 1e-6


def gemm(meter: Meter) -> Rows:
    """Matrix products: linear layers forward and their two backward products, squares, small ones."""
    small = bool(meter.smoke)
    dtypes = {"bf16": torch.bfloat16}
    shapes = [("square", str(n), n, n, n) for n in (SQUARES if not small else (32,))]
    for tokens in TOKENS if not small else (4,):
        for model, layers in LAYERS.items():
            for name, (outputs, inputs) in layers.items():
                if small:
                    outputs, inputs = 64, 32
                elif tokens * outputs > 1 << 30:
                    continue
                shapes.append((model, name, tokens, outputs, inputs))
    others = (("square", str(n), n, n, n) for n in ((1024, 4096) if not small else (16,)))
    for other in others:
        for name, dtype in (("fp16", torch.float16), ("fp32", torch.float32), ("tf32", torch.float32)):
            torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
            yield from _products((other,), name, dtype, meter)
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, dtype in dtypes.items():
        yield from _products(shapes, name, dtype, meter)


def _products(shapes: Any, dtype_name: str, dtype: torch.dtype, meter: Meter) -> Rows:
    def make(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=meter.device, dtype=dtype) * 0.1

    for model, name, m, n, k in shapes:
        weights = _copies(lambda n=n, k=k: make(n, k))
        x, dy = make(m, k), make(m, n)
        calls = {
            "forward": lambda i, x=x, w=weights: torch.nn.functional.linear(x, w[i % len(w)]),
            "input_grad": lambda i, dy=dy, w=weights: dy @ w[i % len(w)],
            "weight_grad": lambda i, x=x, dy=dy: dy.t() @ x,
        }
        for what, call in calls.items():
            if what != "forward" and (m < 256 or model == "square"):
                continue
            times = timed(call, meter)
            yield {
                "table": "gemm", "of": model, "name": name, "pass": what, "dtype": dtype_name,
                "m": m, "n": n, "k": k, **times, "tflops": round(2 * m * n * k / _best(times) / 1e12, 3),
            }  # fmt: skip
        del weights, x, dy, calls


def attention(meter: Meter) -> Rows:
    """scaled_dot_product_attention by shape and kernel, forward and backward, bf16, causal unless one query."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {"default": None, "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
    backends |= {"cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}
    for batch, heads, kv_heads, queries, keys, dim in ATTENTIONS if not meter.smoke else ((1, 4, 2, 16, 16, 8),):
        for name, backend in backends.items():
            if name == "math" and batch * heads * queries * keys > 1 << 28:
                continue

            def make(n: int, s: int, b: int = batch, d: int = dim) -> torch.Tensor:
                # as a projection leaves it: (batch, length, heads, dimension), seen transposed
                whole = torch.randn(b, s, n, d, device=meter.device, dtype=torch.bfloat16)
                return whole.transpose(1, 2).requires_grad_()

            q, k, v = make(heads, queries), make(kv_heads, keys), make(kv_heads, keys)
            causal = queries > 1

            def forward(_i: int = 0, q: Any = q, k: Any = k, v: Any = v, causal: bool = causal) -> torch.Tensor:
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

            flops = 4 * batch * heads * queries * keys * dim // (2 if causal else 1)
            row = {
                "table": "attention", "kernel": name, "batch": batch, "heads": heads, "kv_heads": kv_heads,
                "queries": queries, "keys": keys, "head_dim": dim, "causal": causal, "dtype": "bf16",
            }  # fmt: skip
            try:
                with sdpa_kernel([backend]) if backend else torch.autograd.set_grad_enabled(True):
                    with torch.no_grad():
                        times = timed(forward, meter)
                    yield {**row, "pass": "forward", **times, "tflops": round(flops / _best(times) / 1e12, 3)}
                    if queries == 1:
                        continue
                    out = forward()
                    dy = torch.randn_like(out)

                    def backward(_i: int = 0, out: Any = out, dy: Any = dy, qkv: Any = (q, k, v)) -> Any:
                        return torch.autograd.grad(out, qkv, dy, retain_graph=True)

                    # autograd runs on the stream of the forward pass, which no capture may wait for
                    times = timed(backward, meter, graph=False)
                    yield {**row, "pass": "backward", **times, "tflops": round(2.5 * flops / _best(times) / 1e12, 3)}
            except RuntimeError as error:
                yield {**row, "pass": "forward", "refused": str(error).splitlines()[0][:200]}


def copy(meter: Meter) -> Rows:
    """Bytes per second of copies and of element-wise work; a device copy reads and writes, both are counted."""
    sizes = COPY_BYTES if not meter.smoke else (1 << 10,)
    for size in sizes:
        n = size // 2
        xs = _copies(lambda n=n: torch.ones(n, device=meter.device, dtype=torch.bfloat16), least=2)
        xs = xs if len(xs) % 2 == 0 else xs[:-1]
        out = torch.empty_like(xs[0])
        wide = torch.empty(n, device=meter.device, dtype=torch.float32)
        kinds: dict[str, tuple[Callable[[int], Any], int]] = {
            "device to device": (lambda i, a=xs, o=out: o.copy_(a[i % len(a)]), 2 * size),
            "add bf16": (lambda i, a=xs, o=out: torch.add(a[i % len(a)], a[(i + 1) % len(a)], out=o), 3 * size),
            "bf16 to fp32": (lambda i, a=xs, w=wide: w.copy_(a[i % len(a)]), 3 * size),
            "fill": (lambda i, a=xs: a[i % len(a)].zero_(), size),
            "sum": (lambda i, a=xs: a[i % len(a)].sum(), size),
        }
        for name, (call, moved) in kinds.items():
            yield _copied(name, size, moved, timed(call, meter))
        if meter.device == "cuda":
            for kind, pinned in (("pinned", True), ("pageable", False)):
                host = torch.ones(n, dtype=torch.bfloat16, pin_memory=pinned)
                up = timed(lambda _i, h=host, o=out: o.copy_(h, non_blocking=True), meter) if pinned else None
                down = timed(lambda _i, h=host, o=out: h.copy_(o, non_blocking=True), meter) if pinned else None
                up = up or _eager(lambda h=host, o=out: o.copy_(h), meter)
                down = down or _eager(lambda h=host, o=out: h.copy_(o), meter)
                yield _copied(f"host to device, {kind}", size, size, up)
                yield _copied(f"device to host, {kind}", size, size, down)
        del xs, out, wide, kinds
    yield from _updates(meter)
    yield from _norms(meter)


def _eager(call: Callable[[], Any], meter: Meter) -> dict[str, float]:
    call()
    taken = [meter.seconds(call) for _ in range(REPEATS)]
    return {"eager_us": round(statistics.median(taken) * 1e6, 3), "eager_min_us": round(min(taken) * 1e6, 3)}


def _copied(name: str, size: int, moved: int, times: dict[str, float]) -> dict[str, Any]:
    rate = round(moved / _best(times) / 1e9, 3)
    return {"table": "copy", "kernel": name, "bytes": size, "moved_bytes": moved, **times, "gb_per_s": rate}


def _updates(meter: Meter) -> Rows:
    """AdamW over 64 tensors: seven accesses of each parameter (its gradient once, itself and two states twice)."""
    each = (1 << 22) if not meter.smoke else 64
    for how in ("foreach", "fused"):
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            params = [torch.ones(each, device=meter.device, dtype=dtype, requires_grad=True) for _ in range(64)]
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer = torch.optim.AdamW(params, foreach=how == "foreach", fused=how == "fused")
            optimizer.step()
            times = _eager(optimizer.step, meter)
            size = each * 64 * params[0].element_size()
            yield {**_copied(f"adamw {how} {name}", size, 7 * size, times)}
            del params, optimizer


def _norms(meter: Meter) -> Rows:
    """What a transformer does between its products, for 4096 tokens."""
    tokens, width, vocab = (4096, 4096, 128256) if not meter.smoke else (4, 8, 16)
    x = torch.randn(tokens, width, device=meter.device, dtype=torch.bfloat16)
    weight = torch.ones(width, device=meter.device, dtype=torch.bfloat16)
    logits = torch.randn(tokens, vocab, device=meter.device, dtype=torch.bfloat16)
    labels = torch.randint(0, vocab, (tokens,), device=meter.device)
    table = torch.randn(vocab, width, device=meter.device, dtype=torch.bfloat16)
    functional = torch.nn.functional
    size = x.numel() * 2
    kinds: dict[str, tuple[Callable[[int], Any], int]] = {
        "rms_norm": (lambda _i: functional.rms_norm(x, (width,), weight), 2 * size),
        "layer_norm": (lambda _i: functional.layer_norm(x, (width,), weight), 2 * size),
        "silu times": (lambda _i: functional.silu(x) * x, 5 * size),
        "embedding": (lambda _i: functional.embedding(labels, table), 2 * size),
        "cross_entropy fp32": (lambda _i: functional.cross_entropy(logits.float(), labels), logits.numel() * 14),
    }
    for name, (call, moved) in kinds.items():
        yield _copied(name, size if "cross" not in name else logits.numel() * 2, moved, timed(call, meter))


def launch(meter: Meter) -> Rows:
    """What one operation costs the processor: tiny tensors, forward alone and with its backward."""
    x = torch.ones(8, 8, device=meter.device)
    y = torch.ones(8, 8, device=meter.device, requires_grad=True)
    linear = torch.nn.Linear(8, 8, device=meter.device)
    calls: dict[str, Callable[[int], Any]] = {
        "add": lambda _i: x + x,
        "matmul": lambda _i: x @ x,
        "view": lambda _i: x.view(64),
        "linear module": lambda _i: linear(x),
    }
    for name, call in calls.items():
        yield {"table": "launch", "kernel": name, **timed(call, meter)}
    times = _eager(lambda: [(y * y).sum().backward() for _ in range(50)], meter)
    yield {"table": "launch", "kernel": "50 times multiply, sum, backward", **times}


def context(meter: Meter) -> Rows:
    """What fills the card beside tensors, event by event: the context, loaded kernels, workspaces of libraries."""
    start = meter.start()
    yield {"table": "context", "after": "context", "outside_bytes": start["context"], **start}

    def note(after: str) -> dict[str, Any]:
        meter.sample()
        p = meter.peaks()
        return {
            "table": "context", "after": after, "allocated_bytes": p.now_allocated, "reserved_bytes": p.now_reserved,
            "outside_bytes": meter.used() - p.now_reserved,
        }  # fmt: skip

    n = 1024 if not meter.smoke else 8
    x = torch.empty(n, n, device=meter.device, dtype=torch.bfloat16)
    yield note("first tensor")
    x.normal_()
    yield note("first kernel")
    _ = x @ x
    del _
    yield note("first bf16 product")
    w = torch.nn.Linear(n, n, bias=True, device=meter.device, dtype=torch.bfloat16)
    out = w(x)
    yield note("first product with bias")
    out.sum().backward()
    del out
    w.zero_grad(set_to_none=True)
    yield note("first backward")
    f = x.float()
    _ = f @ f
    del _
    yield note("first fp32 product")
    if meter.device == "cuda":
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            _ = x @ x
        side.synchronize()
        del _
        yield note("product on another stream")
    yield from _context_attention(note, meter)


def _context_attention(note: Callable[[str], dict[str, Any]], meter: Meter) -> Rows:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    s = 2048 if not meter.smoke else 8
    shape = (1, 8, s, 128)
    q, k, v = (torch.randn(shape, device=meter.device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        try:
            with sdpa_kernel([getattr(SDPBackend, name)]):
                out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            torch.autograd.grad(out.sum(), (q, k, v))
            del out
            yield note(f"attention, {name.lower()}")
        except RuntimeError as error:
            yield {"table": "context", "after": name.lower(), "refused": str(error).splitlines()[0][:200]}
    big = torch.empty(GIB // 4 if not meter.smoke else 64, device=meter.device)
    yield note("a tensor of 1 GiB")
    del big


TABLES: dict[str, Callable[[Meter], Rows]] = {
    "gemm": gemm,
    "attention": attention,
    "copy": copy,
    "launch": launch,
    "context": context,
}
"""Kind of case -> its rows."""
