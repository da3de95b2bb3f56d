"""Formula against trace: one training step of every family, eleven strategies, peak by peak and layer by layer.

The trace runs the module of transformers on tensors without data and books every allocation; the formula knows the
configuration only. Models keep their real widths and lose layers, so that a trace takes a second.

Usage:
    PYTHONPATH=src python benchmarks/agreement.py [--family NAME] [--strategy NAME] [--layer] [--cache FILE]
    PYTHONPATH=src python benchmarks/agreement.py --table docs/agreement-table.md
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memfit.formula.dims import evaluate
from memfit.formula.kept import layer_kept
from memfit.formula.resolve import resolve
from memfit.formula.setup import Setup
from memfit.formula.stage import StageModel
from memfit.formula.training import dims_of, peaks, setup_of
from memfit.job import parse
from memfit.models import catalog

WRITE = sys.stdout.write
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model: a catalog entry with fewer layers.

    Attributes:
        model: name in the catalog.
        layers: layers kept (enough for one of each kind).
        seq, batch: tokens of a sequence, sequences.
        change: configuration keys set besides.
        images: images of each sequence.
        reference: why the traced module is not what the formula models; the row is shown and not judged.
    """

    model: str
    layers: int = 3
    seq: int = 2048
    batch: int = 1
    images: int = 0
    change: dict[str, Any] = field(default_factory=dict)
    reference: str = ""

    def config(self, vocab: int | None = None) -> dict[str, Any]:
        """The shortened configuration; ``vocab`` replaces the vocabulary size."""
        entry = catalog.lookup(self.model)
        assert entry is not None, self.model
        raw = {**json.loads(json.dumps(entry.config)), **self.change}
        text = raw.get("text_config", raw) if isinstance(raw.get("text_config"), dict) else raw
        count = next((text[k] for k in LAYER_KEYS if k in text), None)
        for key in LAYER_KEYS:
            if key in text:
                text[key] = self.layers
        for key, value in text.items():
            if isinstance(value, list) and len(value) == count and count != self.layers:
                text[key] = value[: self.layers]
        if vocab:
            for owner in (raw, text):
                if "vocab_size" in owner:
                    owner["vocab_size"] = vocab
        return raw


SLOW = "transformers' reference code; the formula has the fused kernels"
TEXT = "text batches leave the vision tower without gradients; the formula trains it"

CASES: dict[str, Case] = {
    "llama": Case(model="llama-3.1-8b"),
    "mistral": Case(model="mistral-7b-v0.1"),
    "mistral-sliding": Case(model="mistral-7b-v0.1", seq=8192, layers=2),
    "qwen2": Case(model="qwen2.5-7b"),
    "qwen3": Case(model="qwen3-4b"),
    "gemma": Case(model="gemma-2b"),
    "gemma2": Case(model="gemma-2-2b", layers=4),
    "gemma3": Case(model="gemma-3-1b", layers=6),
    "phi": Case(model="phi-2"),
    "phi3": Case(model="phi-3-mini", change={"pad_token_id": None}),
    "gpt2": Case(model="gpt2-large", seq=1024, batch=2),
    "gpt_neox": Case(model="pythia-1.4b"),
    "gptj": Case(model="gpt-j-6b"),
    "opt": Case(model="opt-1.3b"),
    "bloom": Case(model="bloom-1b7"),
    "falcon": Case(model="falcon-7b"),
    "falcon-new": Case(model="falcon-40b", layers=2),
    "mpt": Case(model="mpt-7b"),
    "starcoder2": Case(model="starcoder2-3b"),
    "olmo": Case(model="olmo-1b"),
    "olmo2": Case(model="olmo-2-7b"),
    "cohere": Case(model="command-r-v01", layers=2),
    "cohere2": Case(model="command-r7b", layers=4),
    "stablelm": Case(model="stablelm-2-1.6b"),
    "granite": Case(model="granite-3.1-2b"),
    "glm": Case(model="glm-4-9b-0414", change={"model_type": "glm", "architectures": ["GlmForCausalLM"]}),
    "glm4": Case(model="glm-4-9b-0414"),
    "nemotron": Case(model="minitron-4b"),
    "smollm3": Case(model="smollm3-3b", layers=4),
    "mixtral": Case(model="mixtral-8x7b", layers=2),
    "qwen2_moe": Case(model="qwen1.5-moe-a2.7b"),
    "qwen3_moe": Case(model="qwen3-30b-a3b"),
    "olmoe": Case(model="olmoe-1b-7b"),
    "granitemoe": Case(model="granite-3.1-1b-a400m"),
    "deepseek_v2": Case(model="deepseek-v2-lite"),
    "deepseek_v3": Case(model="moonlight-16b-a3b"),
    "gpt_oss": Case(model="gpt-oss-20b", layers=2),
    "glm4_moe": Case(model="glm-4.5-air", layers=3),
    "mamba": Case(model="mamba-790m", seq=128, reference=SLOW),
    "mamba2": Case(model="mamba2-780m", reference=SLOW),
    "falcon_h1": Case(model="falcon-h1-0.5b", reference=SLOW),
    "qwen3_next": Case(model="qwen3-next-80b-a3b", layers=4, reference=SLOW),
    "jamba": Case(
        model="jamba-v0.1", seq=128, layers=4, change={"attn_layer_offset": 1, "attn_layer_period": 2}, reference=SLOW
    ),
    "lfm2": Case(model="lfm2-1.2b", layers=4),
    "bert": Case(model="bert-large-uncased", seq=512, batch=4),
    "t5": Case(model="t5-large", seq=512, batch=4),
    "flan_t5": Case(model="flan-t5-xl", seq=512, batch=4, change={"tie_word_embeddings": True}),
    "qwen2_vl": Case(model="qwen2-vl-2b", reference=TEXT),
    "llava": Case(model="llava-1.5-7b", images=1),
}
"""One or more models for each family."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One way to train, as fields of a job; ``vocab`` shrinks the vocabulary so that blocks decide the peak."""

    framework: str = "torch"
    precision: str = "bf16"
    checkpointing: str = "none"
    optimizer: str = "adamw"
    attention: str = "sdpa"
    grad_accum: int = 1
    method: str = "full"
    vocab: int | None = None


LABELS = {
    "none": "bf16, AdamW foreach",
    "full": "the same, full checkpointing",
    "blocks": "bf16, 8-bit AdamW, small vocabulary",
    "blocks-full": "the same, full checkpointing",
    "fp32": "fp32, 8-bit AdamW, small vocabulary",
    "accum": "transformers, 8-bit AdamW, 2 micro-batches",
    "eager": "written-out attention, small vocabulary",
    "lora": "LoRA on all linear layers, small vocabulary",
    "lora-full": "the same, full checkpointing",
    "autocast": "bf16 autocast, fused AdamW, small vocabulary",
    "sgd": "bf16, SGD",
}
"""What a strategy is, for the table."""

STRATEGIES: dict[str, Strategy] = {
    "none": Strategy(),
    "full": Strategy(checkpointing="full"),
    "blocks": Strategy(optimizer="adamw-8bit", vocab=1024),
    "blocks-full": Strategy(checkpointing="full", optimizer="adamw-8bit", vocab=1024),
    "fp32": Strategy(precision="fp32", optimizer="adamw-8bit", vocab=1024),
    "accum": Strategy(grad_accum=2, framework="transformers", optimizer="adamw-8bit"),
    "eager": Strategy(attention="eager", optimizer="adamw-8bit", vocab=1024),
    "lora": Strategy(method="lora", framework="transformers", vocab=1024),
    "lora-full": Strategy(method="lora", framework="transformers", checkpointing="full", vocab=1024),
    "autocast": Strategy(precision="bf16-mixed", framework="transformers", vocab=1024),
    "sgd": Strategy(optimizer="sgd"),
}


def job_of(case: Case, s: Strategy) -> dict[str, Any]:
    """The job as plain data."""
    task: dict[str, Any] = {"kind": "train", "method": s.method, "seq_len": case.seq}
    if s.method == "lora":
        task["lora"] = {"rank": 16, "targets": "all-linear"}
    model: dict[str, Any] = {"config": case.config(s.vocab)}
    if case.images:
        model["extra"] = {"images": case.images}
    return {
        "model": model,
        "task": task,
        "strategy": {
            "framework": s.framework,
            "precision": s.precision,
            "checkpointing": s.checkpointing,
            "optimizer": s.optimizer,
            "attention": s.attention,
            "grad_accum": s.grad_accum,
            "micro_batch": case.batch,
        },
    }


# -- the trace ---------------------------------------------------------------------------------------------------------


def traced(case: Case, s: Strategy) -> dict[str, Any]:
    """Readings of a trace: peak, phase peaks, what each layer and the rest keep."""
    from memfit.trace.engine import DEVICE, run
    from memfit.trace.hidden import Gpu
    from memfit.trace.job import training_of
    from memfit.trace.program import program
    from memfit.trace.result import group

    job = parse(job_of(case, s))
    from memfit.job import complete

    training, _ = training_of(complete(job).job)
    training = replace(training, keep_outputs=s.framework == "torch")
    engine = training.engine
    made = program(training, DEVICE[engine])
    t = run(made.build, made.step, engine=engine, steps=2, gpu=Gpu(), values=made.values, before=made.before)
    index, peak = t.peak()
    event = t.events[index]
    layers: dict[str, list[Any]] = {}
    total = 0
    for block in t.held():
        size = -(-block.bytes // 512) * 512
        total += size
        layers.setdefault(_owner(block.module), []).append(
            (size, block.op, block.dtype.removeprefix("torch."), list(block.shape), block.module)
        )
    live = [
        (g.rounded_bytes, g.num_blocks, g.op, g.dtype, list(g.shape), g.module, g.component)
        for g in group(t.live(index))
    ]
    return {
        "peak": peak,
        "at": f"{event.phase} {t.blocks[event.id].op} {t.blocks[event.id].module}",
        "phases": t.phase_peaks(step=1),
        "held": total,
        "layers": layers,
        "live": live[:60],
        "seconds": t.seconds,
        "warnings": list(t.warnings),
    }


def _owner(module: str) -> str:
    """``decoder.layers.3`` of a module path: up to the first number; "" outside the layers."""
    found = re.match(r"(.*?)\.(\d+)(\.|$)", module)
    return f"{found[1]}.{found[2]}" if found else ""


# -- the formula -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the formula says of a job."""

    setup: Setup
    model: StageModel
    peak: int
    what: str
    parts: dict[str, int]
    moments: list[tuple[str, str, int]]

    def kept(self) -> dict[str, int]:
        """Bytes kept by each layer, by the layer's name."""
        d, out = self.model.d, {}
        s = self.setup
        for tower in (*s.towers, s.decoder):
            count = d.images * tower.stack.tokens if tower.stack.tokens else d.seq_len
            tokens = d.tokens if tower is s.decoder else d.micro_batch * count
            for i in range(tower.stack.num_layers - tower.stack.unread):
                out[tower.stack.prefix.format(i)] = int(sum(layer_kept(self.model, tower, i, tokens, tokens)))
        return out

    def tail_kept(self) -> int:
        """Bytes kept outside the layers: by the embedding's norm and dropout, the final norm, the head and the loss."""
        s, atoms = self.setup, self.model.tail_atoms()
        ends = [s.tail, s.entry, *(p for leave in s.exits if leave for p in (leave, s.entry))]
        held = 0 if not s.profile.hold_logits else int(atoms["V"]) * s.width
        return sum(int(evaluate(p.kept, atoms)) for p in ends) + held


def predicted(case: Case, s: Strategy) -> Prediction:
    """The formula's peak of a job."""
    r = resolve(parse(job_of(case, s)))
    made, d = setup_of(r), dims_of(r)
    top = max(peaks(made, d, every=True), key=lambda p: p.allocated)
    parts = {k: int(v) for k, v in top.peak.parts.items() if v}
    model = StageModel(made, d, top.stage)
    moments = [(m.phase, m.what, int(m.total)) for m in top.moments]
    return Prediction(
        setup=made, model=model, peak=int(top.allocated), what=top.peak.what, parts=parts, moments=moments
    )


# -- the comparison ----------------------------------------------------------------------------------------------------


class Cache:
    """Readings of traces in a JSON file, by what was traced."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: dict[str, Any] = json.loads(path.read_text()) if path and path.exists() else {}

    def get(self, case: Case, s: Strategy, make: Callable[[Case, Strategy], Any]) -> Any:
        """The stored reading, or a new one."""
        text = json.dumps([job_of(case, s)], sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in self.rows:
            self.rows[key] = make(case, s)
            if self.path:
                self.path.write_text(json.dumps(self.rows, default=str))
        return self.rows[key]


def percent(ours: float, theirs: float) -> str:
    """Relative difference."""
    return f"{100 * (ours / theirs - 1):+8.3f}" if theirs else "     n/a"


def spelled(form: Any, atoms: dict[str, Any]) -> str:
    """A linear form with its numbers."""
    return ", ".join(f"{atom}*{width}={atoms.get(atom, 0) * width}" for atom, width in form.items())


def tensor(block: list[Any], module: str) -> str:
    """A traced tensor as a line."""
    size, op, dtype, shape, _ = block
    return f"      {size:>13d} {op:44s} {dtype:9s} {shape!s:26s} {module}\n"


def layer_rows(name: str, p: Prediction, t: dict[str, Any], *, detail: bool) -> list[str]:
    """Kept bytes of one layer of each kind, formula and trace; with ``detail`` the traced tensors and the form."""
    rows = []
    s = p.setup
    kept = p.kept()
    for tower in (*s.towers, s.decoder):
        for index, kind in enumerate(tower.kinds):
            places = [i for i, k in enumerate(tower.stack.layout) if k == index]
            layer = next((i for i in reversed(places) if 0 < i < tower.stack.num_layers - 1), places[-1])
            owner = tower.stack.prefix.format(layer)
            blocks = next((v for k, v in t["layers"].items() if k.endswith(owner)), [])
            theirs = sum(b[0] for b in blocks)
            off = percent(kept[owner], theirs)
            rows.append(f"  {name:16s} {owner:28s} {kind.block.kind:14s} {kept[owner]:>14d} {theirs:>14d} {off} %\n")
            if detail:
                program = kind.program
                atoms = p.model.atoms(tower, kind, p.model.d.tokens, p.model.d.stream_tokens)
                form = program.checkpoint if s.choices.checkpointing != "none" else program.kept
                rows.append(f"      formula {spelled(form, atoms)}\n")
                rows.extend(tensor(b, b[4].rpartition(owner)[2]) for b in blocks)
    return rows


def form_rows(p: Prediction) -> list[str]:
    """The candidate peaks of the backward pass of each kind of block, largest first."""
    out = []
    tower = p.setup.decoder
    atoms = p.model.tail_atoms()
    ranked = sorted((evaluate(form, atoms), spelled(form, atoms)) for form in p.setup.tail.backward)
    out.extend(f"      tail {size} {words}\n" for size, words in ranked[:-4:-1])
    for kind in tower.kinds:
        atoms = p.model.atoms(tower, kind, p.model.d.tokens, p.model.d.stream_tokens)
        forms = kind.program.backward if p.setup.choices.checkpointing == "none" else kind.program.recompute
        ranked = sorted((evaluate(form, atoms), spelled(form, atoms)) for form in forms)
        out.extend(f"      {kind.block.kind} {size} {words}\n" for size, words in ranked[:-4:-1])
    return out


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pair: the relative difference of the peaks in percent, or why there is none."""

    family: str
    strategy: str
    off: float
    refused: str = ""

    @property
    def judged(self) -> bool:
        """Whether both sides model the same program."""
        return not CASES[self.family].reference


def table(rows: list[Row], limit: float) -> str:
    """The summary of ``docs/agreement-table.md``: a line for each strategy, then what is not judged."""
    import platform
    from importlib.metadata import version

    here = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    judged = [r for r in rows if r.judged]
    total = sum(abs(r.off) <= limit and not r.refused for r in judged)
    lines = [
        f"{len({r.family for r in judged})} models, {len({r.strategy for r in judged})} strategies: {total} of "
        f"{len(judged)} peaks agree within {limit:g} %. Made by `benchmarks/agreement.py --table` with {here}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}; the traces run on no GPU.",
        "",
        f"| strategy | models | within {limit:g} % | median | worst | of |",
        "| --- | --: | --: | --: | --: | --- |",
    ]
    for label in dict.fromkeys(r.strategy for r in judged):
        mine = sorted((r for r in judged if r.strategy == label and not r.refused), key=lambda r: abs(r.off))
        inside, worst = sum(abs(r.off) <= limit for r in mine), mine[-1]
        middle = abs(mine[len(mine) // 2].off)
        lines.append(
            f"| {LABELS[label]} | {len(mine)} | {inside} | {middle:.2f} % | {worst.off:+.2f} % | {worst.family} |"
        )
    lines += ["", "| not judged | range of the difference | why |", "| --- | --: | --- |"]
    for name in dict.fromkeys(r.family for r in rows if not r.judged):
        mine = [r.off for r in rows if r.family == name and not r.refused]
        if mine:
            lines.append(f"| {name} | {min(mine):+.1f} to {max(mine):+.1f} % | {CASES[name].reference} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the table; 1 when a pair differs by more than ``--limit`` percent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", choices=[*CASES], metavar="NAME")
    parser.add_argument("--strategy", action="append", choices=[*STRATEGIES], metavar="NAME")
    parser.add_argument("--layer", action="store_true", help="list the tensors that a layer of each kind keeps")
    parser.add_argument("--peak", action="store_true", help="list what is live at the traced peak")
    parser.add_argument("--cache", type=Path, help="keep the readings of traces in this file")
    parser.add_argument("--table", type=Path, help="write the summary of all pairs to this file")
    parser.add_argument("--limit", type=float, default=1.0, help="largest difference in percent")
    args = parser.parse_args()
    cache, wrong, start, rows = Cache(args.cache), 0, time.time(), []
    heads = f"{'formula B':>16s} {'trace B':>16s} {'peak %':>8s} {'held %':>8s}  formula's moment / trace's"
    WRITE(f"{'family':16s} {'strategy':12s} {heads}\n")
    for name in args.family or CASES:
        case = CASES[name]
        for label in args.strategy or STRATEGIES:
            s = STRATEGIES[label]
            try:
                t = cache.get(case, s, traced)
                p = predicted(case, s)
            except Exception as error:  # a model that one side refuses is a row, not the end
                WRITE(f"{name:16s} {label:12s} {type(error).__name__}: {str(error)[:150]}\n")
                rows.append(Row(family=name, strategy=label, off=0.0, refused=str(error)))
                wrong += not case.reference
                continue
            rows.append(Row(family=name, strategy=label, off=(p.peak / t["peak"] - 1) * 100))
            off = abs(rows[-1].off)
            wrong += off > args.limit and not case.reference
            held = sum(p.kept().values()) + p.tail_kept()
            mark = "  " if off <= args.limit else " ~" if case.reference else " !"
            both = f"{p.peak:>16d} {t['peak']:>16d} {percent(p.peak, t['peak'])} {percent(held, t['held'])}"
            WRITE(f"{name:16s} {label:12s} {both}{mark} {p.what} / {t['at']}\n")
            if args.layer:
                for line in layer_rows(name, p, t, detail=True):
                    WRITE(line)
                form, atoms = p.setup.tail.kept, p.model.tail_atoms()
                WRITE(f"  outside the layers: {p.tail_kept()} {spelled(form, atoms)}\n")
                for b in t["layers"].get("", []):
                    WRITE(tensor(b, b[4]))
            if args.peak:
                for line in form_rows(p):
                    WRITE(line)
                for _, what, size in p.moments:
                    WRITE(f"    {what:32s} {size}\n")
                WRITE(f"    formula {p.parts}\n    trace phases {t['phases']}\n")
                for size, count, op, dtype, shape, module, component in t["live"][:40]:
                    WRITE(f"    {size:>14d} x{count:<3d} {component:12s} {op:40s} {dtype:9s} {shape} {module}\n")
                for line in t["warnings"][:5]:
                    WRITE(f"    {line}\n")
    if args.table:
        args.table.write_text(table(rows, args.limit))
    WRITE(f"{wrong} differ by more than {args.limit} %, {time.time() - start:.0f} s\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
