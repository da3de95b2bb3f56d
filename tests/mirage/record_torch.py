"""What a CUDA build of torch says on an imaginary GPU: error texts, a snapshot, temporaries inside of operations.

    python tests/mirage/record_torch.py PYTHON

writes ``recorded/said-by-torch-VERSION.json`` and, for whoever reads snapshots, ``snapshot-torch-VERSION.pickle``.
PYTHON is an interpreter whose torch is a CUDA build. ``record`` is what the tests call.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from memfit.hardware import lookup_gpu
from memfit.mirage import prepare

HERE = Path(__file__).parent / "recorded"
MIB = 1 << 20
TOTAL, CONTEXT = 2048 * MIB, 300 * MIB
CONFIGS = ("", "expandable_segments:True", "max_split_size_mb:64", "per_process_memory_fraction:0.5")
CARDS = ("a100-sxm-80gb", "rtx-4090", "h100-sxm-80gb")

# Run by PYTHON: allocates and frees until memory runs out, and tells what it did.
_ERRORS = """
import json, sys, torch
torch.cuda.memory._record_memory_history(context="alloc", stacks="python")
live, events, text = {}, [], None
try:
    for i in range(10_000):
        size = (i * 7919 % 97 + 1) * 400_000 + i
        events.append(["alloc", i, size])
        live[i] = torch.empty(size, dtype=torch.uint8, device="cuda")
        if i % 5 == 4:
            events.append(["free", i - 2])
            del live[i - 2]
except torch.OutOfMemoryError as error:
    text = str(error)
if sys.argv[1]:
    torch.cuda.memory._dump_snapshot(sys.argv[1])
print(json.dumps({"torch": str(torch.__version__), "events": events, "text": text}))
import os; sys.stdout.flush(); os._exit(0)
"""

# Run by PYTHON: bytes that operations take beyond what they return, at their fullest moment.
_TEMPORARIES = """
import json, os, sys, torch
F = torch.nn.functional
bf16 = dict(device="cuda", dtype=torch.bfloat16)
found = {}
def measure(name, run):
    run()  # what torch keeps from the first call on, as workspaces, is there
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = run()
    found[name] = torch.cuda.max_memory_allocated() - max(torch.cuda.memory_allocated(), before)
    del out
x = torch.empty(4096, 4096, **bf16)
w = torch.empty(4096, 4096, **bf16)
ids = torch.zeros(4096, dtype=torch.long, device="cuda")
q = torch.empty(1, 32, 4096, 128, **bf16)
logits = torch.empty(4096, 32000, device="cuda")
measure("mm", lambda: x @ w)
measure("sum of rows", lambda: x.sum(0))
measure("softmax", lambda: torch.softmax(x, -1))
measure("layer_norm", lambda: F.layer_norm(x, (4096,)))
measure("cross_entropy", lambda: F.cross_entropy(logits, ids))
measure("sort", lambda: torch.sort(logits))
measure("topk", lambda: torch.topk(logits, 50))
measure("cumsum", lambda: torch.cumsum(logits, -1))
measure("multinomial", lambda: torch.multinomial(logits, 1))
measure("randperm", lambda: torch.randperm(1 << 20, device="cuda"))
measure("embedding backward", lambda: torch.ops.aten.embedding_dense_backward(x, ids, 32000, -1, False))
for name in ("flash", "efficient"):
    forward = getattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention")
    if name == "flash":
        call = lambda: forward(q, q, q, 0.0, True)
    else:
        call = lambda: forward(q, q, q, None, True, 0.0, True)
    measure(f"{name} attention", call)
def attention_backward():
    a = q.detach().requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        out = F.scaled_dot_product_attention(a, a, a, is_causal=True)
    torch.cuda.reset_peak_memory_stats()
    out.backward(q)
    return a.grad
measure("flash attention with backward", attention_backward)
print(json.dumps(found))
sys.stdout.flush(); os._exit(0)
"""


def record(python: Path, snapshot: Path | None = None) -> dict[str, Any]:
    """What the torch of an interpreter says, JSON-ready."""
    errors = []
    card = lookup_gpu("a100-sxm-80gb")[0]
    env = prepare(python, card, total_bytes=TOTAL, context_bytes=CONTEXT)
    for config in CONFIGS:
        path = str(snapshot) if snapshot is not None and not config else ""
        said = _run(python, _ERRORS, {**env, "PYTORCH_ALLOC_CONF": config}, path)
        errors.append({"config": config, "total": TOTAL, "context": CONTEXT, **said})
    temporaries = {name: _run(python, _TEMPORARIES, prepare(python, lookup_gpu(name)[0])) for name in CARDS}
    return {"torch": errors[0]["torch"], "errors": errors, "temporaries": temporaries}


def _run(python: Path, code: str, env: dict[str, str], *words: str) -> dict[str, Any]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTORCH_")}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(code, encoding="utf-8")
        done = subprocess.run([str(python), str(script), *words], env={**clean, **env}, capture_output=True, text=True,
                              timeout=300, check=False)  # fmt: skip
    if done.returncode:
        msg = f"{python} failed: {done.stderr[-2000:]}"
        raise RuntimeError(msg)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def name_of(torch: str) -> str:
    """The file for a torch version."""
    return f"said-by-torch-{torch.partition('+')[0]}.json"


def main(words: list[str]) -> int:
    """Record one interpreter."""
    python = Path(words[0]).absolute()
    draft = HERE / "snapshot.draft"
    said = record(python, draft)
    (HERE / name_of(said["torch"])).write_text(json.dumps(said, separators=(",", ":")) + "\n", encoding="utf-8")
    draft.rename(HERE / f"snapshot-torch-{said['torch'].partition('+')[0]}.pickle")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
