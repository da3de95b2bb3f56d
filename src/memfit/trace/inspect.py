"""Look into one training step: peak, live set, and what one layer keeps for its backward.

``python -m memfit.trace.inspect --model-config config.json --batch 1 --seq 4096 --checkpointing full``
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from memfit.trace.hidden import Gpu
from memfit.trace.result import Block, Trace, group, rounded
from memfit.units import format_gib

_WRITE = sys.stdout.write


def training_step(
    config: Any, *, batch: int, seq: int, checkpointing: str, optimizer: str, dtype: str, device: str = "meta"
) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """(build, step) of a plain training loop of a transformers model: AdamW, labels equal to inputs.

    Args:
        config: a transformers configuration.
        batch, seq: sequences and tokens per sequence of a step.
        checkpointing: ``none`` or ``full``.
        optimizer: ``foreach``, ``fused``, ``for-loop`` or ``none``.
        dtype: of the parameters, e.g. ``bfloat16``.
        device: device type that stands for the GPU.
    """
    import torch

    from memfit.trace import hf

    def build() -> Any:
        model = hf.build(config, device=device, dtype=getattr(torch, dtype))
        if checkpointing == "full":
            hf.checkpoint(model)
        if optimizer == "none":
            return model, None
        adamw = torch.optim.AdamW(model.parameters(), foreach=optimizer == "foreach", fused=optimizer == "fused")
        return model, adamw

    def step(state: Any) -> None:
        model, adamw = state
        ids = torch.zeros(batch, seq, dtype=torch.long, device=device)
        out = model(input_ids=ids, labels=ids)
        loss = out.loss
        loss.backward()
        if adamw is not None:
            adamw.step()
            adamw.zero_grad()

    return build, step


def layer_blocks(trace: Trace, layer: int) -> list[Block]:
    """What the modules of decoder layer ``layer`` made in the last forward and still hold when the backward begins."""
    wanted = str(layer)
    return [b for b in trace.held() if wanted in b.module.split(".")]


def report(trace: Trace, *, layer: int, top: int) -> None:
    """Print the readings of a trace."""
    index, peak = trace.peak()
    event = trace.events[index]
    without = trace.peak(hidden=False)[1]
    lines = [f"engine {trace.engine}  settings {trace.settings}", *(f"  {x}" for x in (*trace.notes, *trace.warnings))]
    where = f"{event.phase} of step {event.step + 1}, at {trace.blocks[event.id].op}"
    lines += [
        f"peak allocated             {peak} B  {format_gib(peak, 4)}  ({where})",
        f"peak requested             {trace.peak_requested} B",
        f"without hidden temporaries {without} B  {format_gib(without, 4)}",
    ]
    for step in range(trace.steps):
        phases = {name: format_gib(size, 4) for name, size in trace.phase_peaks(step=step).items()}
        lines.append(f"step {step + 1}: peak {trace.peak(step=step)[1]} B, phases {phases}")
    lines += [f"operations {trace.num_ops}, events {len(trace.events)}, {trace.seconds:.1f} s", "", "live at the peak:"]
    lines += [f"  {c:14s} {n:>16d} B {format_gib(n, 4):>14s}" for c, n in trace.components(index).items()]
    lines.append("")
    for g in group(trace.live(index))[:top]:
        what = f"{g.component:13s} {g.op:44s} {g.dtype:9s} {list(g.shape)}  {g.module}"
        lines.append(f"  {g.rounded_bytes:>16d} B x{g.num_blocks:<4d} {what}")
    inside = layer_blocks(trace, layer)
    outside = [b for b in trace.held() if not any(part.isdigit() for part in b.module.split("."))]
    for title, blocks in ((f"held by layer {layer}", inside), ("held outside the layers", outside)):
        total = sum(rounded(b.bytes) for b in blocks)
        lines += ["", f"{title} between forward and backward: {total} B in {len(blocks)} blocks"]
        lines += [f"  {b.bytes:>14d} B  {b.op:44s} {b.dtype:9s} {list(b.shape)!s:26s} {b.module}" for b in blocks]
    _WRITE("\n".join(lines) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Command-line entry."""
    parser = argparse.ArgumentParser(prog="python -m memfit.trace.inspect", description=__doc__)
    parser.add_argument("--model-config", required=True, type=Path, help="a Hugging Face config.json")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq", type=int, default=4096)
    parser.add_argument("--checkpointing", choices=("none", "full"), default="none")
    parser.add_argument("--optimizer", choices=("foreach", "fused", "for-loop", "none"), default="foreach")
    parser.add_argument("--layers", type=int, help="build only this many layers")
    parser.add_argument("--layer", type=int, default=0, help="the layer to list")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--attention", default="auto", help="auto, flash, efficient, cudnn, math or eager")
    parser.add_argument("--engine", choices=("meta", "fake-cuda"), default="meta")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--no-hidden", action="store_true", help="leave temporaries inside kernels out")
    args = parser.parse_args(argv)

    from memfit.trace import hf
    from memfit.trace.engine import DEVICE, run

    raw = json.loads(args.model_config.read_text("utf-8"))
    config = hf.config_of(raw, num_layers=args.layers, attention="eager" if args.attention == "eager" else "sdpa")
    build, step = training_step(
        config,
        batch=args.batch,
        seq=args.seq,
        checkpointing=args.checkpointing,
        optimizer=args.optimizer,
        dtype=args.dtype,
        device=DEVICE[args.engine],
    )
    attention = "auto" if args.attention == "eager" else args.attention
    hidden = not args.no_hidden
    trace = run(build, step, engine=args.engine, steps=args.steps, gpu=Gpu(), attention=attention, hidden=hidden)
    report(trace, layer=args.layer, top=args.top)


if __name__ == "__main__":
    main()
