"""Formula against trace for the frameworks' own code: model classes, losses, checkpoints, loops.

``agreement.py`` does this for the modules of transformers. Here each framework's step runs on fake tensors at real
widths with a few layers, and the formula answers the same job with that framework's profile. A framework that cannot be
imported is left out with a message; docs/profiles.md says how to install each.

Usage:
    PYTHONPATH=src python benchmarks/frameworks.py [--framework NAME] [--setting TEXT] [--layer] [--peak]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import time
import warnings
from typing import Any

from _frameworks.common import Missing, Setting
from _shared import text_table
from agreement import Prediction, form_rows, percent, spelled, tensor
from memfit.formula.kept import layer_kept
from memfit.formula.resolve import resolve
from memfit.formula.stage import StageModel
from memfit.formula.training import dims_of, peaks, setup_of
from memfit.job import parse

WRITE = sys.stdout.write
FRAMEWORKS = ("litgpt", "torchtune", "torchtitan", "megatron", "trl")


def predicted(framework: str, setting: Setting) -> Prediction:
    """The formula's peak of the setting with the framework's profile."""
    r = resolve(parse(setting.job(framework)))
    made, d = setup_of(r), dims_of(r)
    top = max(peaks(made, d, every=True), key=lambda p: p.allocated)
    return Prediction(
        setup=made,
        model=StageModel(made, d, top.stage),
        peak=int(top.allocated),
        what=top.peak.what,
        parts={k: int(v) for k, v in top.peak.parts.items() if v},
        moments=[(m.phase, m.what, int(m.total)) for m in top.moments],
    )


def traced(module: Any, setting: Setting) -> dict[str, Any]:
    """Readings of the trace of the framework's own step.

    Raises:
        Missing: the framework is not installed.
    """
    from memfit.trace import sharded
    from memfit.trace.engine import run
    from memfit.trace.hidden import Gpu
    from memfit.trace.result import group, rounded

    made = module.program(setting)
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        stack.callback(sharded.close)
        t = run(made.build, made.step, engine="fake-cuda", steps=2, gpu=Gpu(), before=made.before)
    index, peak = t.peak()
    event = t.events[index]
    inside: dict[str, list[Any]] = {}
    outside: list[Any] = []
    for block in (b for b in t.held() if b.component not in ("parameters", "communication")):
        row = (rounded(block.bytes), block.op, block.dtype.removeprefix("torch."), list(block.shape), block.module)
        path = block.module.replace("_checkpoint_wrapped_module.", "").replace("._checkpoint_wrapped_module", "")
        rest = path.partition(f"{made.layers}.")[2]
        number = rest.partition(".")[0]
        if path.startswith(made.layers) and number.isdigit():
            inside.setdefault(number, []).append(row)
        else:
            outside.append(row)
    live = [
        (g.rounded_bytes, g.num_blocks, g.op, g.dtype, list(g.shape), g.module, g.component)
        for g in group(t.live(index))
    ]
    return {
        "peak": peak,
        "at": f"{event.phase} {t.blocks[event.id].op} {t.blocks[event.id].module}",
        "phases": t.phase_peaks(step=1),
        "inside": inside,
        "outside": outside,
        "live": live,
    }


def layer_of(p: Prediction, inside: dict[str, list[Any]], *, split: bool) -> tuple[int, int]:
    """Bytes that a layer keeps: (formula, trace); ``split``: the mean of all, else the median."""
    layers = len(inside) or 1
    tower = p.setup.decoder
    ours = int(layer_kept(p.model, tower, layers // 2, p.model.d.tokens, p.model.d.stream_tokens)[0])

    def kept(rows: list[Any]) -> int:
        return sum(row[0] for row in rows if not (row[1] == "aten::_to_copy" and weight_like(p, row[3])))

    each = sorted(kept(rows) for rows in inside.values()) or [0]
    shared = sum(each) // layers  # modules that layers share are booked on the first one
    return ours, shared if split else each[len(each) // 2]


def weight_like(p: Prediction, shape: list[int]) -> bool:
    """Whether a cast is of a weight (autocast's copies, which the formula books apart from the layers)."""
    return len(shape) == 2 and p.model.d.seq_len not in shape and p.model.d.tokens not in shape


def detail(p: Prediction, t: dict[str, Any]) -> str:
    """The tensors that a layer keeps, and the formula's form."""
    kind = p.setup.decoder.kinds[0]
    atoms = p.model.atoms(p.setup.decoder, kind, p.model.d.tokens, p.model.d.stream_tokens)
    form = kind.program.checkpoint if p.setup.choices.checkpointing != "none" else kind.program.kept
    numbers = sorted(t["inside"], key=int)
    rows = [f"      formula {spelled(form, atoms)}\n"]
    rows += [tensor(list(b), b[4]) for b in (t["inside"][numbers[len(numbers) // 2]] if numbers else ())]
    rows.append(f"      outside the layers: {p.tail_kept()} {spelled(p.setup.tail.kept, p.model.tail_atoms())}\n")
    rows += [tensor(list(b), b[4]) for b in t["outside"]]
    return "".join(rows)


def at_peak(p: Prediction, t: dict[str, Any]) -> str:
    """What is live at the traced peak, and the formula's moments."""
    rows = form_rows(p)
    rows += [f"    {what:32s} {size}\n" for _, what, size in p.moments]
    rows.append(f"    formula {p.parts}\n    trace phases {t['phases']}\n")
    for size, count, op, dtype, shape, module, component in t["live"][:40]:
        rows.append(f"    {size:>14d} x{count:<3d} {component:12s} {op:40s} {dtype:9s} {shape} {module}\n")
    return "".join(rows)


def main() -> int:
    """Print the tables; 1 when a setting differs by more than ``--limit`` percent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", action="append", choices=FRAMEWORKS)
    parser.add_argument("--setting", action="append", help="only settings whose name has this text")
    parser.add_argument("--layer", action="store_true", help="list the tensors that a layer keeps")
    parser.add_argument("--peak", action="store_true", help="list what is live at the traced peak")
    parser.add_argument("--limit", type=float, default=3.0, help="largest difference of the peak in percent")
    args = parser.parse_args()
    wrong, start = 0, time.time()
    for framework in args.framework or FRAMEWORKS:
        module = importlib.import_module(f"_frameworks.{framework}")
        rows = []
        for name, setting in module.SETTINGS.items():
            if args.setting and not any(text in name for text in args.setting):
                continue
            try:
                t = traced(module, setting)
            except Missing as error:
                WRITE(f"{framework} is left out: {error}\n")
                break
            p = predicted(framework, setting)
            ours, theirs = layer_of(p, t["inside"], split=getattr(module, "SHARED", False))
            both = (ours, theirs) if getattr(module, "COMPARED", "peaks") == "layers" else (p.peak, t["peak"])
            off = abs(both[0] / both[1] - 1) * 100
            wrong += off > args.limit
            gib = [f"{p.peak / 2**30:.3f}", f"{t['peak'] / 2**30:.3f}", percent(p.peak, t["peak"]).strip()]
            mib = [f"{ours / 2**20:.1f}", f"{theirs / 2**20:.1f}", percent(ours, theirs).strip()]
            rows.append([name, *gib, "" if off <= args.limit else "!", *mib, p.what, t["at"]])
            if args.layer or args.peak:
                WRITE(text_table(("setting", *("",) * 9), rows[-1:]) + "\n")
                WRITE((detail(p, t) if args.layer else "") + (at_peak(p, t) if args.peak else ""))
        if rows:
            head = (
                "setting",
                "formula GiB",
                "trace GiB",
                "%",
                "",
                "layer MiB",
                "trace MiB",
                "%",
                "formula at",
                "trace at",
            )
            WRITE(f"{framework}\n{text_table(head, rows)}\n\n")
    WRITE(f"{wrong} settings differ by more than {args.limit} %, {time.time() - start:.0f} s\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
