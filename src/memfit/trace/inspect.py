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
from memfit.trace.result import Block, Trace, any_layer, group, rounded
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
    _WRITE(f"engine {trace.engine}  settings {trace.settings}\n")
    for line in (*trace.notes, *trace.warnings):
        _WRITE(f"  {line}\n")
    _WRITE(f"peak allocated            {peak} B  {format_gib(peak, 4)}  ({event.phase} of step {event.step + 1}, at {trace.blocks[event.id].op})\n")
    _WRITE(f"peak requested            {trace.peak_requested} B\n")
    without = trace.peak(hidden=False)[1]
    _WRITE(f"without hidden temporaries {without} B  {format_gib(without, 4)}\n")
    for step in range(trace.steps):
        phases = {k: format_gib(v, 4) for k, v in trace.phase_peaks(step=step).items()}
        _WRITE(f"step {step + 1}: peak {trace.peak(step=step)[1]} B, phases {phases}\n")
    _WRITE(f"operations {trace.num_ops}, events {len(trace.events)}, {trace.seconds:.1f} s\n\nlive at the peak by component:\n")
    for component, size in trace.components(index).items():
        _WRITE(f"  {component:14s} {size:>16d} B {format_gib(size, 4):>14s}\n")
    _WRITE("\nlive at the peak:\n")
    for g in group(trace.live(index))[:top]:
        _WRITE(f"  {g.rounded_bytes:>16d} B x{g.count:<4d} {g.component:12s} {g.op:44s} {g.dtype:9s} {list(g.shape)}  {g.module}\n")
    blocks = layer_blocks(trace, layer)
    total = sum(rounded(b.bytes) for b in blocks)
    _WRITE(f"\nheld by layer {layer} between forward and backward: {total} B in {len(blocks)} blocks\n")
    for b in blocks:
        _WRITE(f"  {b.bytes:>14d} B  {b.op:44s} {b.dtype:9s} {list(b.shape)!s:26s} {b.module}\n")
    rest = [b for b in trace.held() if not any(p.isdigit() for p in b.module.split("."))]
    _WRITE(f"\nheld outside the layers: {sum(rounded(b.bytes) for b in rest)} B\n")
    for b in rest:
        _WRITE(f"  {b.bytes:>14d} B  {b.op:44s} {b.dtype:9s} {list(b.shape)!s:26s} {any_layer(b.module)}\n")


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
        config, batch=args.batch, seq=args.seq, checkpointing=args.checkpointing, optimizer=args.optimizer,
        dtype=args.dtype, device=DEVICE[args.engine],
    )
    attention = "auto" if args.attention == "eager" else args.attention
    trace = run(build, step, engine=args.engine, steps=args.steps, gpu=Gpu(), attention=attention, hidden=not args.no_hidden)
    report(trace, layer=args.layer, top=args.top)


if __name__ == "__main__":
    main()
