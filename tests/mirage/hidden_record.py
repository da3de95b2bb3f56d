"""Records what CUDA kernels take beside their outputs: operation by operation, per torch release and card.

    python tests/mirage/hidden_record.py [RELEASE ...]

runs the operations of ``CASES`` in released CUDA wheels on imaginary GPUs, and writes ``recorded/hidden-RELEASE.json``.
``test_hidden_recorded.py`` holds the table that ``memfit.trace`` uses against these files.
"""

# ruff: noqa: T201 - a command that prints
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from memfit.hardware import gpus
from memfit.mirage import prepare
from memfit.mirage.environments import find_environment, make_environment, plan_environment

RECORDED = Path(__file__).with_name("recorded")
RELEASES = ("2.9.1", "2.11.0", "2.13.0", "2.15.0")
CARDS = ("t4", "a100-sxm-80gb", "l4", "h100-sxm-80gb", "b200-sxm", "rtx-5090")

# operation, arguments: [shape, dtype] is a tensor, [[shape, dtype], ...] in a "list" a list of them, the rest plain
CASES = [
    ["mm", [[[4096, 4096], "bfloat16"], [[4096, 4096], "bfloat16"]]],
    ["addmm", [[[4096], "bfloat16"], [[4096, 1024], "bfloat16"], [[1024, 4096], "bfloat16"]]],
    ["bmm", [[[16, 512, 128], "bfloat16"], [[16, 128, 512], "bfloat16"]]],
    ["_scaled_dot_product_flash_attention", [*[[[2, 16, 2048, 128], "bfloat16"]] * 3]],
    ["_scaled_dot_product_flash_attention", [[[1, 32, 1, 128], "bfloat16"], *[[[1, 32, 8192, 128], "bfloat16"]] * 2]],
    ["_softmax_backward_data", [[[4096, 4096], "bfloat16"], [[4096, 4096], "bfloat16"], -1, "bfloat16"]],
    ["embedding_dense_backward", [[[4096, 4096], "bfloat16"], [[4096], "int64"], 128256, -1, False]],
    ["embedding_dense_backward", [[[16384, 1024], "float32"], [[16384], "int64"], 32000, -1, False]],
    ["embedding_dense_backward", [[[1024, 1024], "float32"], [[1024], "int64"], 32000, -1, False]],
    ["sum", [[[4096, 4096], "bfloat16"], [0]]],
    ["sum", [[[16384, 4096], "bfloat16"], [0]]],
    ["sum", [[[16384, 1024], "float32"], [0]]],
    ["sum", [[[16384, 4096], "float32"], [1]]],
    ["sum", [[[8192, 8192], "float32"]]],
    ["mean", [[[2048, 4096], "float32"], [-1], True]],
    ["_foreach_norm", ["list", [[[4096, 4096], "bfloat16"]] * 8]],
    ["sort", [[[4, 128256], "float32"], -1, True]],
    ["topk", [[[4, 128256], "float32"], 50]],
    ["randperm", [1048576]],
    ["cumsum", [[[4, 128256], "float32"], -1]],
    ["multinomial", [[[4, 128256], "float32"], 1]],
    ["native_layer_norm", [[[4096, 4096], "bfloat16"], [4096], [[4096], "bfloat16"], [[4096], "bfloat16"], 1e-5]],
    ["_log_softmax", [[[4096, 32000], "float32"], -1, False]],
    ["argmax", [[[4096, 32000], "float32"], -1]],
]

SCRIPT = """
import json, sys, torch
def make(spec):
    if isinstance(spec, list) and len(spec) == 2 and isinstance(spec[1], str) and hasattr(torch, spec[1]):
        return torch.empty(spec[0], dtype=getattr(torch, spec[1]), device="cuda")
    if isinstance(spec, str) and hasattr(torch, spec): return getattr(torch, spec)
    return spec
def tensors(value):
    if isinstance(value, torch.Tensor): yield value
    elif isinstance(value, (list, tuple)):
        for part in value: yield from tensors(part)
found = []
for name, specs in json.load(open(sys.argv[1])):
    args = [[make(s) for s in specs[1]]] if specs[:1] == ["list"] else [make(s) for s in specs]
    extra = {"device": "cuda"} if name == "randperm" else {}
    row = [0, 0]
    for turn in (1, 2):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()
        try: out = getattr(torch.ops.aten, name)(*args, **extra)
        except RuntimeError as error:
            row = str(error).splitlines()[0][:120]
            break
        after = torch.cuda.memory_stats()
        def grown(key): return after[key] - before[key]
        made = {t.untyped_storage().data_ptr(): -(-t.untyped_storage().nbytes() // 512) * 512
                for t in tensors(out) if t.is_cuda and t.untyped_storage().nbytes()}
        outputs = sum(made.values())
        kept = grown("allocated_bytes.all.current") - outputs
        peak = after["allocated_bytes.all.peak"] - before["allocated_bytes.all.current"] - outputs - kept
        row = [kept, peak] if turn == 1 else [row[0] - kept, peak]
        del out
    found.append(row)
print("\\n" + json.dumps(found), flush=True)
import os; os._exit(0)
"""


def measure(python: Path, card: str, folder: Path) -> list[list[int] | str]:
    """Per case: bytes kept at the first call only, bytes held during the second beside its outputs; or an error."""
    gpu = next(gpu for gpu in gpus() if gpu.name == card)
    cases = folder / "cases.json"
    cases.write_text(json.dumps(CASES))
    environment = prepare(python, gpu, total_bytes=256 << 30)
    done = subprocess.run(
        [str(python), "-c", SCRIPT, str(cases)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(releases: list[str]) -> None:
    """Measure all cards of some releases."""
    for release in releases:
        python = find_environment(release) or make_environment(plan_environment(release), echo=print)
        with tempfile.TemporaryDirectory() as folder:
            cards = {card: measure(python, card, Path(folder)) for card in CARDS}
        lines = [
            json.dumps({"op": op, "args": args, "cards": {card: rows[i] for card, rows in cards.items()}})
            for i, (op, args) in enumerate(CASES)
        ]
        target = RECORDED / f"hidden-{release}.json"
        target.write_text("[\n" + ",\n".join(lines) + "\n]\n")
        print(target)


if __name__ == "__main__":
    main(sys.argv[1:] or list(RELEASES))
