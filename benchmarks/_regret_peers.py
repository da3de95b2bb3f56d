"""Peers on the arenas of ``regret.py``: each runs in an environment of its own, all its answers in one process.

``python _regret_peers.py llm-analysis`` inside that environment reads jobs (a JSON object, id -> job) from standard
input and writes id -> [seconds of a step, fits] or null. llm-analysis is asked at a FLOPS efficiency of 0.5, without
FlashAttention where the job says "eager"; a GPU or a shape that it refuses has no answer, and is not picked.

Calculon's planner is not on the package index (its name belongs to a producer-consumer library there): there is no row
for it.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regret import Candidate

TIMEOUT_S = 900
GPUS = {"h100-sxm-80gb", "a100-sxm-80gb", "a100-sxm-40gb", "v100-sxm-32gb", "v100-sxm-16gb"}
SHORT = {"h100": "h100-sxm-80gb", "a100": "a100-sxm-80gb", "a100-sxm": "a100-sxm-80gb"}


def ask(arenas: Mapping[str, Sequence[Candidate]], jobs: Mapping[str, Mapping[str, Any]], folder: Path) -> list[str]:
    """Puts the peers' answers into the candidates; the names of those that answered.

    Peers that cannot be installed are named on standard error with the reason.
    """
    from peers import PEERS, install

    peer = next(p for p in PEERS if p.name == "llm-analysis")
    python, reason = install(peer, folder, None)
    print("Calculon: not on the package index, left out", file=sys.stderr)
    if python is None:
        print(f"{peer.name}: {reason}", file=sys.stderr)
        return []
    done = subprocess.run(
        [str(python), __file__, peer.name],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        print(f"{peer.name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return []
    answers = json.loads(done.stdout)
    for members in arenas.values():
        for candidate in members:
            answer = answers.get(candidate.id)
            candidate.peers[peer.name] = (float(answer[0]), bool(answer[1])) if answer else None
    return [peer.name]


def llm_analysis(job: Mapping[str, Any], scratch: Path) -> tuple[float, bool] | None:
    """Seconds of a step and whether it fits, by llm-analysis; None where it refuses."""
    from llm_analysis.analysis import train

    config, task, strategy, hardware = (
        job["model"].get("config"),
        job["task"],
        job["strategy"],
        job["hardware"],
    )
    gpu = SHORT.get(hardware.get("gpu"), hardware.get("gpu"))
    if not config or gpu not in GPUS or not strategy.get("micro_batch"):
        return None
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    width = config.get("intermediate_size") or 4 * hidden
    own = {
        "name": "model",
        "num_layers": config["num_hidden_layers"],
        "n_head": heads,
        "hidden_dim": hidden,
        "vocab_size": config["vocab_size"],
        "max_seq_len": task["seq_len"],
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "ffn_embed_dim": width,
        "expansion_ratio": width / hidden,  # given the width alone, it asserts that this ratio is a whole number
        "model_type": config["model_type"],
    }
    file = scratch / "model.json"
    file.write_text(json.dumps(own))
    recompute = {"none": 0, "attention": 1, "selective": 1, "full": 2}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            result = train(
                model_name=str(file),
                gpu_name=gpu,
                batch_size_per_gpu=strategy["micro_batch"],
                gradient_accumulation_steps=strategy.get("grad_accum") or 1,
                seq_len=task["seq_len"],
                total_num_gpus=hardware["gpus"],
                dp_size=strategy.get("dp") or 1,
                tp_size=strategy.get("tp") or 1,
                pp_size=strategy.get("pp") or 1,
                ds_zero=strategy.get("zero") or 0,
                activation_recomputation=recompute.get(strategy.get("checkpointing") or "none", 2),
                flash_attn=strategy.get("attention") != "eager",
                mlp_gated_linear_units=config["model_type"] == "llama",
                flops_efficiency=0.5,
                hbm_memory_efficiency=0.7,
                log_level="ERROR",
            )
    except (AssertionError, ValueError, ZeroDivisionError, KeyError, TypeError):
        return None
    return float(result["latency_per_iter"]), float(result["memory_left_per_gpu"]) >= 0


def main(peer: str) -> None:
    """Answers on standard output."""
    assert peer == "llm-analysis"
    jobs = json.load(sys.stdin)
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:
        answers = {name: llm_analysis(job, Path(scratch)) for name, job in jobs.items()}
    json.dump(answers, out)


if __name__ == "__main__":
    main(sys.argv[1])
