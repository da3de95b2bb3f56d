"""Asks one peer one question, inside the peer's own environment.

``python _peer_programs.py PEER CASE.json`` prints one JSON line: ``gib`` (what the peer answers, in GiB) and ``parts``
(its components in GiB, where it has any), or ``refused`` with the reason. A case has ``kind`` (serve or train),
``folder`` (with config.json), ``model_id`` and ``hub`` (a loopback server that has them), ``params``,
``largest_layer_params``, ``context`` or ``seq_len``, ``micro_batch``, ``precision``, ``checkpointing``, ``zero``,
``gpus``, ``lora_rank``. Nothing here may import memfit, except for memfit's own turn.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

GIB = 1 << 30

Case = dict[str, Any]
Answer = dict[str, Any]


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """The peer has no answer to this question; the message says why."""


def _train_only(case: Case) -> None:
    if case["kind"] != "train":
        raise Refused("training only")


def _one_gpu(case: Case) -> None:
    if case["gpus"] > 1:
        raise Refused("one GPU only")


def memfit(case: Case) -> Answer:
    """memfit itself: the allocated peak of the fullest rank."""
    from memfit import estimate

    fields = {"model": case["config"], "gpu": "h100-sxm-80gb", "gpus": case["gpus"], "attention": "sdpa"}
    if case["kind"] == "serve":
        # the fewest cards that could hold it make no difference to a sum over one copy
        fields |= {"kind": "serve", "framework": "transformers", "context": case["context"], "gpus": 1}
    else:
        fields |= {
            "kind": "train",
            "framework": "torch",
            "method": "lora" if case["lora_rank"] else "full",
            "lora_rank": case["lora_rank"] or None,
            "seq_len": case["seq_len"],
            "micro_batch": case["micro_batch"],
            "precision": case["precision"],
            "checkpointing": case["checkpointing"],
            "zero": case["zero"],
            "optimizer": "adamw",
            "loss": "eager",
        }
        if case["lora_rank"]:
            fields |= {"lora_targets": ["q_proj", "k_proj", "v_proj", "o_proj"], "weights": "bf16"}
    result = estimate(**fields)
    parts = {k: v / GIB for k, v in result.ledger.by_component().items()}
    return {"gib": result.allocated_bytes / GIB, "parts": parts}


def hf_mem(case: Case) -> Answer:
    """hf-mem: weights from safetensors headers, and the key/value cache."""
    if case["kind"] != "serve":
        raise Refused("inference only")
    import asyncio

    import httpx2
    from hf_mem.run import arun

    hub = httpx2.URL(case["hub"])
    handle = httpx2.AsyncHTTPTransport.handle_async_request

    async def to_loopback(self: Any, request: Any) -> Any:
        # The tool names its hub in the code; every request goes to the loopback server instead.
        request.url = request.url.copy_with(scheme=hub.scheme, host=hub.host, port=hub.port)
        request.headers["host"] = f"{hub.host}:{hub.port}"
        return await handle(self, request)

    httpx2.AsyncHTTPTransport.handle_async_request = to_loopback
    result = asyncio.run(arun(case["model_id"], experimental=True, max_model_len=case["context"], batch_size=1))
    parts = {"weights": _bytes(result.memory) / GIB, "kv_cache": _bytes(result.kv_cache) / GIB}
    return {"gib": result.total_memory / GIB, "parts": parts}


def _bytes(value: Any) -> float:
    return float(value if isinstance(value, int | float) else getattr(value, "cache_size", 0) or 0)


def vramcalc(case: Case) -> Answer:
    """vramcalc: config.json, training on one GPU and transformers' generate."""
    _one_gpu(case)
    from vramcalc.cli import main

    arguments = [case["folder"], "--json", "--batch", "1"]
    if case["kind"] == "serve":
        arguments += ["--seq", str(case["context"])]
    else:
        precision = "amp" if case["precision"].endswith("-mixed") else "pure"
        arguments += ["--train", "--seq", str(case["seq_len"]), "--precision", precision]
        arguments += ["--grad-checkpoint"] if case["checkpointing"] == "full" else []
        arguments += ["--lora", str(case["lora_rank"])] if case["lora_rank"] else []
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as stop:
            if stop.code not in (0, 1, None):
                raise Refused(_last_line(err.getvalue() or out.getvalue() or str(stop.code))) from None
    if not out.getvalue().strip():
        raise Refused(_last_line(err.getvalue()))
    result = json.loads(out.getvalue())
    result = result.get("estimate", result)
    names = ("weights", "gradients", "optimizer", "activations", "autocast_cache", "step_workspace", "kv_cache")
    return {"gib": result["total"] / GIB, "parts": {n: result[n] / GIB for n in names if result.get(n)}}


def _last_line(text: str) -> str:
    """What a tool said last, without its own name in front."""
    return text.strip().splitlines()[-1].removeprefix("vramcalc: ")


def llm_analysis(case: Case) -> Answer:
    """llm-analysis: DeepSpeed ZeRO training and inference, from its own model description."""
    from llm_analysis.analysis import infer, train

    c = json.loads((Path(case["folder"]) / "config.json").read_text())
    own = {
        "name": case["model_id"].replace("/", "_"),
        "num_layers": c["num_hidden_layers"],
        "n_head": c["num_attention_heads"],
        "hidden_dim": c["hidden_size"],
        "vocab_size": c["vocab_size"],
        "max_seq_len": c["max_position_embeddings"],
        "num_key_value_heads": c["num_key_value_heads"],
        "ffn_embed_dim": c["intermediate_size"],
        # Stated beside the width: given the width alone, it asserts that this ratio is a whole number.
        "expansion_ratio": c["intermediate_size"] / c["hidden_size"],
        "model_type": c["model_type"],
        "moe_num_experts": c.get("num_local_experts", 1),
        "moe_top_k": c.get("num_experts_per_tok", 1),
    }
    file = Path(case["folder"]) / "llm-analysis.json"
    file.write_text(json.dumps(own))
    shared = {"model_name": str(file), "gpu_name": "h100-sxm-80gb", "batch_size_per_gpu": 1, "log_level": "ERROR"}
    shared |= {"flops_efficiency": 0.5, "hbm_memory_efficiency": 0.7}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            if case["kind"] == "serve":
                result = infer(**shared, seq_len=case["context"], num_tokens_to_generate=1)
            elif case["lora_rank"]:
                raise Refused("no LoRA")
            elif not case["precision"].endswith("-mixed"):
                raise Refused("mixed precision only")
            else:
                result = train(
                    **shared,
                    total_num_gpus=case["gpus"],
                    dp_size=case["gpus"],
                    ds_zero=case["zero"],
                    gradient_accumulation_steps=1,
                    seq_len=case["seq_len"],
                    activation_recomputation=2 if case["checkpointing"] == "full" else 0,
                    mlp_gated_linear_units=True,
                )
    except AssertionError as error:
        raise Refused(f"asserts: {str(error).partition(',')[0]}") from None
    memory = {k: v / GIB for k, v in result.items() if "memory" in k and isinstance(v, int | float) and v > 2}
    wanted = {
        "weight_memory_per_gpu": "weights",
        "optimizer_state_memory_per_gpu": "optimizer",
        "gradient_memory_per_gpu": "gradients",
        "activation_memory_per_gpu": "activations",
        "prefill_activation_memory_per_gpu": "activations",
        "kv_cache_memory_per_gpu": "kv_cache",
        "activation_memory_embedding_output_per_gpu": "logits",
    }
    parts = {new: memory[old] for old, new in wanted.items() if old in memory}
    return {"gib": sum(v for k, v in parts.items() if k != "logits"), "parts": parts, "raw": memory}


def deepspeed(case: Case) -> Answer:
    """DeepSpeed's estimator of model states under ZeRO-3, from counts."""
    _train_only(case)
    if case["lora_rank"] or not case["precision"].endswith("-mixed"):
        raise Refused("full mixed-precision training only")
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    _, gpu, largest = estimate_zero3_model_states_mem_needs(
        total_params=case["params"],
        largest_layer_params=case["largest_layer_params"],
        num_gpus_per_node=case["gpus"],
        cpu_offload=False,
        cpu_offload_params=False,
        zero_init=True,
    )
    return {"gib": gpu / GIB, "parts": {"largest layer": largest / GIB, "states": (gpu - largest) / GIB}}


def accelerate(case: Case) -> Answer:
    """accelerate estimate-memory: the model's size, and a rule of thumb for Adam."""
    if case["gpus"] > 1 or case["lora_rank"]:
        raise Refused("one GPU, no LoRA")
    if case["kind"] == "train" and not case["precision"].endswith("-mixed"):
        raise Refused("no bf16 training")
    os.environ["HF_ENDPOINT"] = case["hub"]
    from accelerate.commands.estimate import estimate_command_parser, gather_data

    arguments = estimate_command_parser().parse_args([case["model_id"], "--dtypes", "float16"])
    with contextlib.redirect_stdout(io.StringIO()):
        ((_, _, total, training),) = gather_data(arguments)
    if case["kind"] == "serve":
        return {"gib": total / GIB, "parts": {"weights": total / GIB}}
    return {"gib": max(training.values()) / GIB, "parts": {k: v / GIB for k, v in training.items()}}


def _fake_model(case: Case, dtype: Any) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(case["folder"])
    config.use_cache = False
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if case["checkpointing"] == "full":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def memtracker(case: Case) -> Answer:
    """torch.distributed._tools: MemTracker on one GPU, FSDPMemTracker on several, over fake tensors."""
    _train_only(case)
    if case["lora_rank"]:
        raise Refused("needs the LoRA module, not only a config")
    if case["precision"].endswith("-mixed") != (case["gpus"] > 1):
        raise Refused("run with bf16 on one GPU, mixed precision under FSDP")
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    torch.set_num_threads(1)
    return _tracked_sharded(case, torch, FakeTensorMode) if case["gpus"] > 1 else _tracked(case, torch, FakeTensorMode)


def _tracked(case: Case, torch: Any, fake: Any) -> Answer:
    from torch.distributed._tools.mem_tracker import MemTracker

    with fake():
        model = _fake_model(case, torch.bfloat16)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
        tokens = torch.zeros(1, case["seq_len"], dtype=torch.long)
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        with tracker:
            for _ in range(2):
                model(input_ids=tokens, labels=tokens).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                tracker.reset_mod_stats()
    return _snapshot(tracker, {})


def _tracked_sharded(case: Case, torch: Any, fake: Any) -> Answer:
    import torch.distributed as dist
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=case["gpus"], store=FakeStore())
    mesh = init_device_mesh("cpu", (case["gpus"],))  # outside: a mesh reads its tensor of ranks
    with fake():
        model = _fake_model(case, torch.float32)
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        how = {"mesh": mesh, "mp_policy": policy}
        for layer in model.model.layers:
            fully_shard(layer, **how)
        fully_shard(model, **how)
        optimizer = torch.optim.AdamW(model.parameters())
        tokens = torch.zeros(1, case["seq_len"], dtype=torch.long)
        tracker = FSDPMemTracker(model, optimizer)
        tracker.track_inputs((tokens,))
        with tracker:
            model(input_ids=tokens, labels=tokens).loss.backward()
    # The tracker's own optimizer step counts global shapes (torch 2.13), so the states are added from the count.
    return _snapshot(tracker, {"optimizer states (added)": 8 * case["params"] / case["gpus"] / GIB})


def _snapshot(tracker: Any, added: dict[str, float]) -> Answer:
    ((_, peak),) = ((d, s) for d, s in tracker.get_tracker_snapshot("peak").items() if s.get("Total"))
    parts = {getattr(k, "value", str(k)): v / GIB for k, v in peak.items() if v and k != "Total"}
    return {"gib": peak["Total"] / GIB + sum(added.values()), "parts": {**parts, **added}}


PEERS = {
    "memfit": memfit,
    "hf-mem": hf_mem,
    "vramcalc": vramcalc,
    "llm-analysis": llm_analysis,
    "deepspeed": deepspeed,
    "accelerate": accelerate,
    "torch": memtracker,
}


def _peak_rss_mib() -> float | None:
    """Peak resident memory since this program started; the parent's own does not count, as it would in rusage."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


def main(peer: str, file: str) -> None:
    """Prints the answer."""
    case = json.loads(Path(file).read_text())
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # peers print and log as they like
        try:
            answer = PEERS[peer](case)
        except Refused as reason:
            answer = {"refused": str(reason)}
    answer["rss_mib"] = _peak_rss_mib()
    print(json.dumps(answer), file=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
