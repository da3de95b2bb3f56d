"""The runs themselves: training steps of a plain loop, of transformers' Trainer, of one rank of many; generation.

Every function takes the case, the meter and returns a JSON-ready mapping of what was measured, in bytes and seconds.
Imported by the worker only, once torch is there.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from _meter import Meter

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TIMED_S = 6.0
"""Steps are repeated until so much time went by, at least three and at most ten."""


def build(job: Mapping[str, Any], settings: Mapping[str, Any], device: str) -> Any:
    """The model of a job with random weights, made on ``device``, with its adapters and checkpoints."""
    from memfit.trace import hf

    strategy = job["strategy"]
    config = hf.config_of(job["model"]["config"], attention=strategy.get("attention", "sdpa"))
    lora = job["task"].get("lora")
    train = job["task"]["kind"] == "train"
    before = torch.get_default_dtype()
    torch.set_default_dtype(_parameters(job))
    try:
        with torch.device(device):
            model = hf.model_class(config)(config)
    finally:
        torch.set_default_dtype(before)
    if train and hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    model.train(train)
    if lora:
        model = hf.add_lora(model, {"r": lora["rank"], "target_modules": lora["targets"]})
    checkpointing = strategy.get("checkpointing", "none")
    if checkpointing != "none" and not settings.get("trainer"):
        every = checkpointing if isinstance(checkpointing, int) else 1
        hf.checkpoint(model, every=every, selective=checkpointing == "selective")
        if lora:
            model.enable_input_require_grads()
    return model


def _parameters(job: Mapping[str, Any]) -> torch.dtype:
    strategy = job["strategy"]
    precision = strategy.get("precision", "bf16")
    if job["task"]["kind"] == "serve" or job["task"].get("lora"):
        return DTYPES[strategy["weights"].removesuffix("-mixed")]
    return DTYPES["fp32" if precision.endswith("-mixed") else precision]


def optimizer_of(job: Mapping[str, Any], settings: Mapping[str, Any], model: Any) -> torch.optim.Optimizer:
    """The optimizer of a job; AdamW is foreach for the torch loop and fused for the transformers one."""
    trained = [p for p in model.parameters() if p.requires_grad]
    name = job["strategy"]["optimizer"]
    if name == "adamw":
        usual = "fused" if job["strategy"]["framework"] == "transformers" else "foreach"
        how = settings.get("impl", usual)
        return torch.optim.AdamW(trained, lr=1e-5, foreach=how == "foreach", fused=how == "fused")
    if name in ("sgd", "momentum"):
        return torch.optim.SGD(trained, lr=1e-5, momentum=0.9 if name == "momentum" else 0.0, foreach=True)
    if name == "adamw-8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(trained, lr=1e-5)  # type: ignore[no-any-return]
    raise ValueError(f"no optimizer `{name}` here")


def stepper(job: Mapping[str, Any], settings: Mapping[str, Any], model: Any, optimizer: Any, device: str) -> Any:
    """One optimizer step as a function without arguments.

    The step of the ``torch`` framework keeps the model's output in a variable until the step ends, as a plain loop
    does; that of ``transformers`` takes the loss out of it. Gradients are freed after the step. Nothing of a step
    lives on in the next.
    """
    strategy = job["strategy"]
    accum, batch, seq = strategy["grad_accum"], strategy["micro_batch"], job["task"]["seq_len"]
    mixed = strategy["precision"].endswith("-mixed") and not job["task"].get("lora") and strategy["zero"] < 3
    held = strategy["framework"] == "torch"
    vocab = model.config.get_text_config().vocab_size

    def contexts() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        if mixed:
            stack.enter_context(torch.autocast(device, dtype=DTYPES[strategy["precision"].removesuffix("-mixed")]))
        return stack

    def micro_batch() -> Any:
        ids = torch.randint(0, vocab, (batch, seq), device=device)
        with contexts():
            out = model(input_ids=ids, labels=ids)
        loss = out.loss
        if not held:
            out = None
        if accum > 1:
            loss = loss / accum
        loss.backward()
        return (ids, out) if held else None

    def step() -> None:
        kept = None
        with _kernel(settings.get("backend")):
            for _ in range(accum):
                kept = micro_batch()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        del kept

    return step


def _kernel(backend: str | None) -> Any:
    if not backend:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = {
        "math": SDPBackend.MATH,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
    }
    return sdpa_kernel([names[backend]])


class Watch:
    """Peaks and times of steps, one by one."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        built = meter.peaks()
        self.built = {
            "allocated": built.now_allocated, "reserved": built.now_reserved, "peak_allocated": built.allocated,
        }  # fmt: skip
        self.steps: list[dict[str, float]] = []

    def step(self, call: Callable[[], Any]) -> float:
        """Runs one step; its seconds."""
        self.begin()
        taken = self.meter.seconds(call)
        self.end(taken)
        return taken

    def begin(self) -> None:
        """A step begins."""
        self.meter.reset()

    def end(self, taken: float) -> None:
        """It ended, after so many seconds."""
        self.meter.sample()
        p = self.meter.peaks()
        self.steps.append(
            {"allocated": p.allocated, "reserved": p.reserved, "after": p.now_allocated, "seconds": taken}
        )

    def result(self, tokens: int) -> dict[str, Any]:
        """What was measured. The first two steps warm up and are not timed."""
        timed = [s["seconds"] for s in self.steps[2:]]
        peaks = {kind: int(max(s[kind] for s in self.steps)) for kind in ("allocated", "reserved")}
        seconds = statistics.median(timed) if timed else None
        return {
            "peak_bytes": {**peaks, "device": peaks["reserved"] + self.meter.outside},
            "outside_bytes": self.meter.outside,
            "built_bytes": self.built,
            "steps": self.steps,
            "step_s": seconds,
            "tokens_per_s": tokens / seconds if seconds else None,
            "allocator": self.meter.statistics(),
        }


def train(case: Mapping[str, Any], meter: Meter) -> dict[str, Any]:
    """Steps of a plain loop."""
    job, settings = case["job"], case["settings"]
    if "limit_gib" in settings:
        meter.limit(int(settings["limit_gib"] * (1 << 30)))
    model = build(job, settings, meter.device)
    optimizer = optimizer_of(job, settings, model)
    return _run_steps(job, stepper(job, settings, model, optimizer, meter.device), meter)


def _run_steps(job: Mapping[str, Any], step: Callable[[], None], meter: Meter) -> dict[str, Any]:
    watch = Watch(meter)
    end = 0.0
    while len(watch.steps) < 5 or (time.monotonic() < end and len(watch.steps) < 12):
        watch.step(step)
        if len(watch.steps) == 2:
            end = time.monotonic() + TIMED_S
        if watch.steps[-1]["seconds"] > TIMED_S and len(watch.steps) >= 3:
            break
    strategy = job["strategy"]
    return watch.result(strategy["micro_batch"] * strategy["grad_accum"] * job["task"]["seq_len"])


def sharded(case: Mapping[str, Any], meter: Meter) -> dict[str, Any]:
    """Rank 0 of many under FSDP2, on a process group whose collectives move nothing: memory only."""
    from memfit.trace import sharded as ranks

    job, settings = case["job"], case["settings"]
    precision = job["strategy"]["precision"]
    mixed = precision.endswith("-mixed")
    mesh = ranks.meshes(job["strategy"]["dp"], 1)()
    try:
        with torch.device("meta"):
            model = build(job, settings, "meta")
        ranks.apply(
            model,
            mesh,
            reshard=True,
            compute=DTYPES[precision.removesuffix("-mixed")] if mixed else None,
            reduce=torch.float32 if mixed else None,
        )
        model.to_empty(device=meter.device)
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.zero_()
        optimizer = optimizer_of(job, settings, model)
        result = _run_steps(job, stepper(job, settings, model, optimizer, meter.device), meter)
    finally:
        ranks.close()
    return {**result, "step_s": None, "tokens_per_s": None}


def trainer(case: Mapping[str, Any], meter: Meter) -> dict[str, Any]:
    """Steps of transformers' Trainer with its own defaults: fused AdamW, gradients clipped to norm 1."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    job = case["job"]
    strategy, seq = job["strategy"], job["task"]["seq_len"]
    model = build(job, {**case["settings"], "trainer": True}, meter.device)
    vocab = model.config.get_text_config().vocab_size
    watch, steps = Watch(meter), 6
    rows = torch.randint(0, vocab, (steps * strategy["micro_batch"], seq))

    class Steps(TrainerCallback):  # type: ignore[misc]
        start = 0.0

        def on_step_begin(self, *_arguments: Any, **_named: Any) -> None:
            meter.sample()
            watch.begin()
            self.start = time.perf_counter()

        def on_step_end(self, *_arguments: Any, **_named: Any) -> None:
            meter.sample()
            watch.end(time.perf_counter() - self.start)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=strategy["micro_batch"],
            bf16=strategy["precision"] == "bf16-mixed",
            gradient_checkpointing=strategy["checkpointing"] == "full",
            gradient_checkpointing_kwargs={"use_reentrant": False},
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=meter.device == "cpu",
            dataloader_pin_memory=meter.device != "cpu",
        )
        data = [{"input_ids": row, "labels": row} for row in rows]
        Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Steps()]).train()
    return watch.result(strategy["micro_batch"] * seq)


def generate(case: Mapping[str, Any], meter: Meter) -> dict[str, Any]:
    """Greedy generation with transformers' own key/value cache."""
    job = case["job"]
    task = job["task"]
    model = build(job, case["settings"], meter.device)
    weights = meter.peaks().now_allocated
    vocab = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocab, (task["concurrency"], task["prompt"]), device=meter.device)
    mask = torch.ones_like(ids)
    kv = 0

    def run(tokens: int) -> None:
        nonlocal kv
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0,
            return_dict_in_generate=True,
        )  # fmt: skip
        kv = _cache_bytes(getattr(out, "past_key_values", None))

    meter.seconds(lambda: run(2))
    meter.reset()
    first = statistics.median(meter.seconds(lambda: run(1)) for _ in range(3))
    whole = meter.seconds(lambda: run(task["output"]))
    meter.sample()
    peaks = meter.peaks()
    each = (whole - first) / (task["output"] - 1)
    return {
        "peak_bytes": {
            "allocated": peaks.allocated,
            "reserved": peaks.reserved,
            "device": peaks.reserved + meter.outside,
        },
        "outside_bytes": meter.outside,
        "weights_bytes": weights,
        "kv_bytes": kv,
        "first_token_s": first,
        "token_s": each,
        "tokens_per_s": task["concurrency"] / each if each > 0 else None,
        "allocator": meter.statistics(),
    }


def _cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a cache holds; 0 for a kind that is not known here."""
    found = 0
    for layer in getattr(cache, "layers", ()):
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if isinstance(tensor, torch.Tensor):
                found += tensor.numel() * tensor.element_size()
    return found


RUNS: dict[str, Callable[[Mapping[str, Any], Meter], dict[str, Any]]] = {
    "train": train,
    "trainer": trainer,
    "sharded": sharded,
    "generate": generate,
}
"""Kind of case -> what runs it."""
