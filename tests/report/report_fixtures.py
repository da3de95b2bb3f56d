"""Hand-made estimates: fixed figures, so that the renderings can be compared to the letter whatever the model says.

``python tests/report/report_fixtures.py`` rewrites the golden texts; read the difference before you commit it.
"""

from dataclasses import replace
from pathlib import Path

from memfit.formula.estimate import Assumption, Change, Estimate
from memfit.formula.reading import Outside, Reading
from memfit.formula.resolve import resolve
from memfit.job import from_kwargs
from memfit.ledger import Band
from memfit.planner.difference import Diff, Figures, LeverChange
from memfit.report.diff import diff_text
from memfit.report.estimate import estimate_text
from memfit.report.html import estimate_html
from memfit.report.page import Page
from memfit.report.sweep import Axis, Sweep, sweep_text
from memfit.report.timeline import timeline_text
from memfit.units import GIB

GOLDEN = Path(__file__).parent / "golden"
WIDTHS = (60, 80, 120)

NAMES = {
    "weights": ("parameters", "weights"),
    "gathered": ("parameters", "gathered weights"),
    "grads": ("gradients", "gradients"),
    "states": ("optimizer", "optimizer states"),
    "kept": ("activations", "kept for the backward pass"),
    "logits": ("logits", "logits and loss"),
    "kv": ("kv_cache", "keys and values"),
    "cublas": ("workspace", "cuBLAS workspaces"),
}
JOB = {
    "model": "llama-3.1-8b",
    "kind": "train",
    "method": "full",
    "framework": "torch",
    "precision": "bf16-mixed",
    "optimizer": "adamw",
    "seq_len": 8192,
    "micro_batch": 1,
    "grad_accum": 1,
    "gpu": "8xh100",
    "zero": 3,
    "checkpointing": "full",
    "attention": "flash",
    "loss": "eager",
}
PARTS = {"weights": 4 * GIB, "gathered": 3 * GIB, "grads": 0, "states": 8 * GIB, "kept": 2 * GIB, "logits": 14 * GIB}
ASSUMPTIONS = (
    Assumption(field="strategy.compile", value=False, alternative=True, delta_bytes=-3 * GIB),
    Assumption(field="strategy.set_to_none", value=True, alternative=False, delta_bytes=GIB // 2),
    Assumption(field="task.lora.dropout", value=0.0, alternative=0.05, delta_bytes=0),
)
CHANGES = (
    Change(what="fused linear cross-entropy (Liger, CCE)", fields={"loss": "fused"}, delta_bytes=-11 * GIB),
    Change(what="half the micro-batch", fields={"micro_batch": 1, "global_batch": None}, delta_bytes=-9 * GIB),
    Change(what="optimizer states on the host", fields={"offload": ("optimizer",)}, delta_bytes=-8 * GIB),
    Change(what="no compilation", fields={"compile": False}, delta_bytes=-GIB),
)


def reading(parts=PARTS, *, label="every rank", phase="backward", moment="gradient of the logits", slack=3 * GIB):
    parts = {"cublas": 64 << 20, **parts}
    return Reading(label, phase, moment, parts, slack, Outside(GIB // 2, GIB, 0), 0, NAMES)


def make(readings=None, *, fullest=0, capacity=80 * GIB, job=JOB, changes=CHANGES, **more):
    """An estimate of these figures; its band and what it lists are given, not computed."""
    readings = readings or (reading(),)
    resolved = replace(resolve(from_kwargs(**job)), capacity_bytes=capacity)
    made = Estimate(resolved=resolved, readings=tuple(readings), fullest=fullest, **more)
    top = readings[fullest]
    need = (top.allocated * 2 + top.reserved) // 3 + top.outside.total
    sizes = {"allocated": top.allocated, "reserved": top.reserved, "device": top.device, "need": need}
    made.__dict__["bands"] = {kind: Band(size * 9 // 10, size, size * 11 // 10) for kind, size in sizes.items()}
    over = (need * 11 // 10 - capacity) if capacity else 0
    changes = tuple(replace(c, p_oom=float(c.delta_bytes + over > 0) if capacity else None) for c in changes)
    made.__dict__.update(assumptions=ASSUMPTIONS, changes=changes)
    return made


PHASES = (
    ("loss", "loss", {**PARTS, "logits": 12 * GIB}),
    ("backward", "gradient of the logits", PARTS),
    ("optimizer", "optimizer step", {"weights": 4 * GIB, "states": 8 * GIB, "grads": 4 * GIB, "unheard_of": GIB}),
)


def fits():
    return make(phases=PHASES)


def not_fitting():
    return make((reading({**PARTS, "logits": 70 * GIB}),), warnings=("`task.lora` has no effect",))


def tight():
    return make((reading({**PARTS, "logits": 59 * GIB}, slack=5 * GIB),))


def no_card():
    return make(capacity=None, job={**JOB, "gpu": None, "dp": 8}, changes=())


def pipeline():
    def stage(i, size):
        return reading({**PARTS, "kept": size * GIB}, label=f"pipeline stage {i}", moment=f"backward of layer {i}")

    same = reading({**PARTS, "kept": 5 * GIB}, label="pipeline stage 1", moment="optimizer step", phase="optimizer")
    job = {**JOB, "pp": 4, "gpu": "32xh100", "zero": 1}
    return make((stage(0, 9), same, same._replace(label="pipeline stage 2"), stage(3, 6)), job=job)


def serve():
    parts = {"weights": 16 * GIB, "kv": 18 * GIB, "logits": 3 * GIB}
    job = {"model": "qwen3-30b-a3b", "kind": "serve", "framework": "transformers", "gpu": "h100", "context": 16384}
    one = reading(parts, phase="prefill", moment="prefill of the prompts")
    return make((one,), job={**job, "weights": "bf16", "kv": "bf16", "concurrency": 8})


ESTIMATES = {
    "fits": fits,
    "not-fitting": not_fitting,
    "tight": tight,
    "no-card": no_card,
    "pipeline": pipeline,
    "serve": serve,
}
COMMAND = "memfit estimate job.toml"


def sweep(axes=1):
    sizes = (10, 30, 62, 120)
    cells = tuple(make((reading({**PARTS, "logits": s * GIB}),)) for s in sizes)
    if axes == 1:
        return Sweep(axes=(Axis(field="task.seq_len", values=(2048, 4096, 8192, 16384)),), cells=cells)
    rows = Axis(field="strategy.micro_batch", values=(1, 2))
    columns = Axis(field="strategy.checkpointing", values=("none", "full"))
    return Sweep(axes=(rows, columns), cells=(cells[3], cells[0], cells[2], cells[1]))


def two_jobs():
    left, right = fits(), not_fitting()
    a = Figures(device_bytes=left.device_bytes, seconds=2.5, tokens_per_s_per_gpu=9000.0, usd_per_mtoken=0.07)
    b = Figures(device_bytes=right.device_bytes, seconds=2.0, tokens_per_s_per_gpu=11250.0, usd_per_mtoken=0.056)
    change = LeverChange(lever="checkpointing", fields={"checkpointing": ("full", "none")}, before=a, after=b)
    return Diff(left=left, right=right, a=a, b=b, changes=(change,))


def rendered(width):
    """Every golden text of one width, by name."""
    page = Page(width=width)
    texts = {name: estimate_text(page, build(), command=COMMAND) for name, build in ESTIMATES.items()}
    texts["timeline"] = timeline_text(page, fits())
    texts["sweep"] = sweep_text(page, sweep())
    texts["sweep-two"] = sweep_text(page, sweep(2))
    texts["diff"] = diff_text(page, two_jobs(), ("llama-3.1-8b", "b.toml"))
    texts["verbose"] = estimate_text(Page(width=width, verbose=True), pipeline()).rpartition("\n\n")[0] + "\n"
    texts["ascii"] = estimate_text(Page(width=width, unicode=False), not_fitting(), command=COMMAND)
    return texts


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for width in WIDTHS:
        for name, text in rendered(width).items():
            (GOLDEN / f"{name}-{width}.txt").write_text(text, encoding="utf-8")
    (GOLDEN / "estimate.html").write_text(estimate_html(pipeline()) + "\n", encoding="utf-8")
