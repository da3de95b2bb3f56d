"""The table of all job fields: validation, defaults, flags, documentation and the editor schema derive from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from sys import intern
from types import MappingProxyType
from typing import Any, Literal

FieldType = Literal[
    "int", "number", "bool", "choice", "choices", "text", "names", "targets", "trainable",
    "checkpointing", "weights", "mapping", "lora", "gpu", "counts",
]  # fmt: skip

SCHEMA = 1
MAX_DEGREE = 1 << 20  # GPUs, and each parallel degree
MAX_TOKENS = 1 << 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One field of the job.

    Attributes:
        path: dotted place in the document, e.g. ``strategy.zero``.
        type: how values are read; see ``memfit.job.coerce``.
        doc: one line.
        choices: allowed words, in the order shown.
        aliases: other spellings -> choice.
        low, high: bounds of numbers, both included (``above`` excludes ``low`` itself).
        default: generic default of a training job; None when the default is derived or there is none.
        serve: generic default of a serving job where it differs.
        kind: the task kind it has an effect in, None for both.
        derived: filled by ``complete`` from other fields when it is not stated.
        optional: may stay None: absence means that the model, the GPU or the engine says.
        unit: of numbers: tokens, sequences, GPUs, layers, GiB.
        flags: names on the command line.
        also: names that other tools use for it; an unknown key among them gets this field as its hint.
    """

    path: str
    type: FieldType
    doc: str
    choices: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    low: float = 0
    high: float = 0
    above: bool = False
    default: Any = None
    serve: Any = None
    kind: Literal["train", "serve"] | None = None
    derived: bool = False
    optional: bool = False
    unit: str = ""
    flags: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        """The table of the document that holds the field, e.g. ``strategy`` or ``task.lora``."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The flat name for Python keyword arguments and overrides, e.g. ``zero`` or ``lora_rank``."""
        section, _, leaf = self.path.rpartition(".")
        # Interned, as the keywords of a call are: other strings are matched far slower.
        return intern(f"lora_{leaf}" if section == "task.lora" else leaf)


SERVE_FRAMEWORKS = ("vllm", "sglang", "llama.cpp", "tensorrt-llm", "ollama", "exllama")
TRAIN_FRAMEWORKS = (
    "torch", "trl", "torchtitan", "torchtune", "deepspeed", "megatron", "nanotron",
    "litgpt", "colossalai", "swift", "axolotl", "internevo",
)  # fmt: skip
# Engines that spread a model over GPUs by layers, not by tensors, unless told otherwise: llama.cpp's `--split-mode
# layer` default (docs of llama-server, 2025), which ollama inherits; exllama's gpu split; transformers' device_map.
LAYER_SPLIT_FRAMEWORKS = frozenset({"llama.cpp", "ollama", "exllama", "transformers"})

_GGUF = (
    "q2_k", "q2_k_s", "q3_k_s", "q3_k_m", "q3_k_l", "q4_0", "q4_1", "q4_k_s", "q4_k_m", "q5_0", "q5_1", "q5_k_s",
    "q5_k_m", "q6_k", "q8_0", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "iq3_s",
    "iq3_m", "iq4_xs", "iq4_nl", "tq1_0", "tq2_0",
)  # fmt: skip
WEIGHTS = (
    "fp32", "fp16", "bf16", "fp8", "mxfp8", "int8", "int4", "fp4", "nf4", "nf4-dq", "awq", "gptq", "mxfp4", "nvfp4",
    *_GGUF,
)  # fmt: skip
LOW_BIT_WEIGHTS = frozenset(WEIGHTS) - {"fp32", "fp16", "bf16"}
_FLOATS = {
    "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32",
    "f32": "fp32", "f16": "fp16",
}  # fmt: skip
_FP8 = {"fp8-e4m3": "fp8", "fp8-e5m2": "fp8", "float8": "fp8", "f8": "fp8"}

FIELDS: tuple[Field, ...] = (
    Field(
        path="model.name", type="text", high=4096, optional=True, flags=("--model", "-m"),
        doc="a catalog name, the hub id of a catalog model, or a folder or file with a config.json",
        also=("model_name", "model_name_or_path", "model_id", "model_path", "base_model", "hf_model"),
    ),
    Field(
        path="model.config", type="mapping", optional=True, flags=("--config",),
        doc="the content of a Hugging Face config.json; wins over the name", also=("config_json", "hf_config"),
    ),
    Field(
        path="model.extra", type="mapping", optional=True, flags=("--extra",),
        doc="facts that no config states: moe_imbalance (the fullest expert's tokens over the mean), images a sequence",
    ),
    Field(
        path="task.kind", type="choice", choices=("train", "serve"), derived=True, flags=("--kind", "--task"),
        aliases={"training": "train", "finetune": "train", "serving": "serve", "inference": "serve"},
        doc="what is done: training or inference", also=("mode", "phase"),
    ),
    Field(
        path="task.method", type="choice", kind="train", derived=True, flags=("--method",),
        choices=("full", "lora", "qlora", "dora", "freeze", "dpo", "grpo"), aliases={"sft": "full", "pretrain": "full"},
        doc="what is trained: all parameters, adapters, or a part",
        also=("train_type", "finetuning_type", "peft_type", "stage"),
    ),
    Field(
        path="task.seq_len", type="int", low=1, high=MAX_TOKENS, default=4096, kind="train", unit="tokens",
        flags=("--seq-len", "--seq", "-s"), doc="tokens per sequence",
        also=("seq", "seq_length", "sequence_length", "sequence_len", "max_length", "max_seq_length", "max_seq_len",
              "block_size", "cutoff_len", "model_max_length"),
    ),
    Field(
        path="task.global_batch", type="int", low=1, high=MAX_TOKENS, kind="train", derived=True, unit="sequences",
        flags=("--global-batch",), doc="sequences per optimizer step, over all GPUs",
        also=("global_batch_size", "train_batch_size", "gbs"),
    ),
    Field(
        path="task.lora", type="lora", kind="train", optional=True, flags=("--lora",),
        doc="adapters of the methods lora, qlora and dora: a table, or a rank", also=("peft", "adapter"),
    ),
    Field(
        path="task.lora.rank", type="int", low=1, high=1 << 16, default=16, kind="train", flags=("--lora-rank",),
        doc="rank of the adapters", also=("r", "lora_r", "lora_dim", "adapter_dim"),
    ),
    Field(
        path="task.lora.targets", type="targets", default="all-linear", kind="train", flags=("--lora-targets",),
        doc='module names, or "all-linear"', also=("target_modules", "lora_target_modules", "lora_target"),
    ),
    Field(
        path="task.lora.train_also", type="names", default=(), kind="train", flags=("--lora-train-also",),
        doc="modules that are trained in full beside the adapters, e.g. embed_tokens",
        also=("modules_to_save", "lora_modules_to_save", "additional_target"),
    ),
    Field(
        path="task.lora.alpha", type="number", low=0, high=1e9, kind="train", optional=True, flags=("--lora-alpha",),
        doc="scale of the adapters; costs no memory",
    ),
    Field(
        path="task.lora.dropout", type="number", low=0, high=1, default=0.0, kind="train", flags=("--lora-dropout",),
        doc="dropout before the adapters: above 0 keeps a mask and a copy of the input",
    ),
    Field(
        path="task.trainable", type="trainable", low=0, high=1 << 16, kind="train", optional=True,
        flags=("--trainable",),
        doc="method freeze: number of last layers, fraction of the parameters (0.1), or module names that are trained",
        also=("freeze_trainable_layers", "unfrozen_parameters", "num_layer_trainable", "trainable_parameters"),
    ),
    Field(
        path="task.context", type="int", low=1, high=MAX_TOKENS, serve=4096, kind="serve", derived=True, unit="tokens",
        flags=("--context", "-c"), doc="longest sequence, prompt and output together",
        also=("max_model_len", "context_length", "ctx_size", "n_ctx", "num_ctx"),
    ),
    Field(
        path="task.concurrency", type="int", low=1, high=MAX_DEGREE, default=1, kind="serve", unit="sequences",
        flags=("--concurrency",), doc="sequences that are served at once",
        also=("max_num_seqs", "parallel", "max_running_requests", "num_parallel", "max_concurrency"),
    ),
    Field(
        path="task.batch_tokens", type="int", low=1, high=MAX_TOKENS, kind="serve", optional=True, unit="tokens",
        flags=("--batch-tokens", "-ub"), doc="tokens of one scheduler step; without it, the engine's own",
        also=("max_num_batched_tokens", "chunked_prefill_size", "ubatch_size", "n_ubatch"),
    ),
    Field(
        path="task.prompt", type="int", low=0, high=MAX_TOKENS, kind="serve", derived=True, unit="tokens",
        flags=("--prompt",), doc="tokens of a prompt", also=("prompt_len", "input_len", "isl"),
    ),
    Field(
        path="task.output", type="int", low=0, high=MAX_TOKENS, kind="serve", derived=True, unit="tokens",
        flags=("--output",), doc="tokens that are generated for a prompt", also=("output_len", "max_new_tokens", "osl"),
    ),
    Field(
        path="strategy.framework", type="choice", default="transformers", flags=("--framework", "-f"),
        choices=("transformers", *TRAIN_FRAMEWORKS, *SERVE_FRAMEWORKS),
        aliases={"hf": "transformers", "huggingface": "transformers", "pytorch": "torch", "ms-swift": "swift",
                 "megatron-lm": "megatron", "megatron-core": "megatron", "nemo": "megatron", "fsdp": "torch",
                 "trtllm": "tensorrt-llm", "trt-llm": "tensorrt-llm", "llamacpp": "llama.cpp", "llama-cpp": "llama.cpp",
                 "exllamav2": "exllama"},
        doc="the tool that runs the job", also=("engine", "backend", "tool"),
    ),
    Field(
        path="strategy.framework_version", type="text", high=256, optional=True, flags=("--framework-version",),
        doc="its version, where behaviour differs by version",
    ),
    Field(
        path="strategy.precision", type="choice", default="bf16-mixed", serve="bf16", kind="train",
        flags=("--precision",), choices=("fp32", "bf16", "fp16", "bf16-mixed", "fp16-mixed", "fp8", "mxfp8", "nvfp4"),
        aliases={**_FLOATS, "mixed": "bf16-mixed", "amp": "bf16-mixed", "bf16-true": "bf16", "fp16-true": "fp16"},
        doc='dtype of training; "-mixed" keeps fp32 master parameters, "bf16" has everything in bf16',
        also=("dtype", "torch_dtype", "mixed_precision", "fp16", "bf16"),
    ),
    Field(
        path="strategy.optimizer", type="choice", default="adamw", serve="none", kind="train",
        choices=("adamw", "adamw-8bit", "adamw-4bit", "paged-adamw-8bit", "sgd", "momentum", "adafactor", "lion",
                 "muon", "galore", "none"),
        aliases={"adam": "adamw", "adamw-torch": "adamw", "adamw-torch-fused": "adamw", "fused-adamw": "adamw",
                 "adam-8bit": "adamw-8bit", "adamw8bit": "adamw-8bit", "adamw-bnb-8bit": "adamw-8bit",
                 "adamw4bit": "adamw-4bit", "paged-adamw8bit": "paged-adamw-8bit", "sgd-momentum": "momentum"},
        flags=("--optimizer", "--optim"), doc="the optimizer, which decides the state kept per parameter",
        also=("optim", "optimizer_name", "optimizer_type"),
    ),
    Field(
        path="strategy.optimizer_in_backward", type="bool", default=False, kind="train",
        flags=("--optimizer-in-backward",), doc="each gradient is applied and freed as it appears",
        also=("optimizer_in_bwd", "fused_backward"),
    ),
    Field(
        path="strategy.set_to_none", type="bool", default=True, kind="train", flags=("--set-to-none",),
        doc="zero_grad frees the gradients between steps",
    ),
    Field(
        path="strategy.micro_batch", type="int", low=1, high=MAX_DEGREE, kind="train", derived=True, unit="sequences",
        flags=("--micro-batch", "-b"), doc="sequences per forward pass, per data-parallel rank",
        also=("batch", "batch_size", "micro_batch_size", "per_device_train_batch_size", "local_batch_size", "mbs",
              "train_micro_batch_size_per_gpu"),
    ),
    Field(
        path="strategy.grad_accum", type="int", low=1, high=MAX_DEGREE, kind="train", derived=True,
        flags=("--grad-accum",), doc="micro-batches per optimizer step: global_batch = micro_batch * grad_accum * dp",
        also=("gradient_accumulation_steps", "gradient_accumulation", "accumulation_steps", "num_microbatches"),
    ),
    Field(
        path="strategy.dp", type="int", low=1, high=MAX_DEGREE, derived=True, unit="GPUs", flags=("--dp",),
        doc="data-parallel degree; sharding spreads states over it",
        also=("data_parallel_size", "dp_size", "data_parallel", "dp_replicate"),
    ),
    Field(
        path="strategy.zero", type="int", low=0, high=3, default=0, kind="train", flags=("--zero",),
        doc="sharding: 0 none, 1 optimizer, 2 and gradients, 3 and parameters (FSDP)",
        also=("zero_stage", "zero_optimization", "fsdp", "sharding"),
    ),
    Field(
        path="strategy.dp_shard", type="int", low=1, high=MAX_DEGREE, kind="train", derived=True, unit="GPUs",
        flags=("--dp-shard",), doc="GPUs that one sharded copy spans (HSDP); without it, dp",
        also=("data_parallel_shard_degree", "hsdp", "sharding_group_size"),
    ),
    Field(
        path="strategy.reshard", type="bool", default=True, kind="train", flags=("--reshard",),
        doc="ZeRO-3: parameters are freed between forward and backward", also=("reshard_after_forward",),
    ),
    Field(
        path="strategy.tp", type="int", low=1, high=MAX_DEGREE, derived=True, unit="GPUs", flags=("--tp",),
        doc="tensor-parallel degree",
        also=("tensor_parallel_size", "tensor_model_parallel_size", "tp_size", "tensor_parallel"),
    ),
    Field(
        path="strategy.sequence_parallel", type="bool", default=False, kind="train", flags=("--sequence-parallel",),
        doc="activations between tensor-parallel regions are split over tp",
    ),
    Field(
        path="strategy.pp", type="int", low=1, high=MAX_DEGREE, derived=True, unit="GPUs", flags=("--pp",),
        doc="pipeline stages", also=("pipeline_parallel_size", "pipeline_model_parallel_size", "pp_size"),
    ),
    Field(
        path="strategy.pp_schedule", type="choice", kind="train", derived=True, flags=("--pp-schedule",),
        choices=("gpipe", "1f1b", "interleaved", "zero-bubble", "dualpipe"),
        aliases={"interleaved-1f1b": "interleaved", "zb": "zero-bubble", "zerobubble": "zero-bubble", "afab": "gpipe"},
        doc="order of micro-batches in the pipeline", also=("pipeline_schedule", "pipeline_parallel_schedule"),
    ),
    Field(
        path="strategy.virtual_pp", type="int", low=1, high=1024, kind="train", derived=True, flags=("--virtual-pp",),
        doc="model chunks per pipeline stage (interleaved schedule)",
        also=("vpp", "virtual_pipeline_model_parallel_size", "num_model_chunks"),
    ),
    Field(
        path="strategy.pp_layers", type="counts", low=0, high=1 << 16, kind="train", optional=True, unit="layers",
        flags=("--pp-layers",),
        doc="decoder layers on each pipeline rank, in order; without it, the framework's own split",
        also=("pipeline_model_parallel_layout", "module_fqns_per_model_part", "decoder_first_pipeline_num_layers",
              "decoder_last_pipeline_num_layers"),
    ),
    Field(
        path="strategy.cp", type="int", low=1, high=MAX_DEGREE, default=1, unit="GPUs", flags=("--cp",),
        doc="context-parallel degree: GPUs that share one sequence",
        also=("context_parallel_size", "context_parallel_degree", "ulysses_size", "sequence_parallel_size"),
    ),
    Field(
        path="strategy.ep", type="int", low=1, high=MAX_DEGREE, default=1, unit="GPUs", flags=("--ep",),
        doc="expert-parallel degree, within dp * cp * tp",
        also=("expert_parallel_size", "expert_model_parallel_size", "ep_size", "expert_parallel_degree"),
    ),
    Field(
        path="strategy.checkpointing", type="checkpointing", low=1, high=1 << 16, default="none", kind="train",
        choices=("none", "selective", "attention", "full"), flags=("--checkpointing", "--ckpt"),
        aliases={"block": "full", "off": "none", "no": "none", "false": "none", "true": "full", "on": "full"},
        doc="activation checkpointing; an int recomputes every n-th layer",
        also=("gradient_checkpointing", "activation_checkpointing", "ac_mode", "recompute", "recompute_granularity"),
    ),
    Field(
        path="strategy.compile", type="bool", default=False, flags=("--compile",), doc="torch.compile",
        also=("torch_compile",),
    ),
    Field(
        path="strategy.attention", type="choice", choices=("flash", "sdpa", "eager"), default="flash",
        aliases={"flash-attention": "flash", "flash-attention-2": "flash", "flash-attention-3": "flash", "fa2": "flash",
                 "fa3": "flash", "fa": "flash", "naive": "eager"},
        flags=("--attention",), doc="attention kernel",
        also=("attn_implementation", "flash_attention", "attn", "flash_attn"),
    ),
    Field(
        path="strategy.loss", type="choice", choices=("eager", "compiled", "chunked", "fused"), default="eager",
        kind="train", aliases={"liger": "fused", "cce": "fused"}, flags=("--loss",),
        doc="loss kernel: eager makes fp32 copies of the logits, fused never holds them",
        also=("loss_fn", "loss_kernel", "use_liger_kernel", "cross_entropy"),
    ),
    Field(
        path="strategy.offload", type="choices", choices=("optimizer", "parameters", "gradients", "activations"),
        default=(), kind="train", aliases={"params": "parameters", "grads": "gradients", "param": "parameters"},
        flags=("--offload",), doc="what is kept in host memory",
        also=("cpu_offload", "offload_optimizer", "offload_params"),
    ),
    Field(
        path="strategy.weights", type="weights", choices=WEIGHTS, low=0.5, high=32, default="bf16", derived=True,
        aliases={**_FLOATS, **_FP8, "8bit": "int8", "4bit": "nf4", "bnb-4bit": "nf4", "bnb-8bit": "int8",
                 "nf4-double": "nf4-dq"},
        flags=("--weights", "--quant"),
        doc="storage of frozen or served weights; { bpw = 4.9 } for a mean width in bits",
        also=("quantization", "quant", "load_in_4bit", "load_in_8bit", "weight_dtype", "bnb_4bit_quant_type"),
    ),
    Field(
        path="strategy.kv", type="choice", default="bf16", kind="serve", flags=("--kv",),
        choices=("fp32", "bf16", "fp16", "fp8", "int8", "int4", "nvfp4", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1",
                 "iq4_nl"),
        aliases={**_FLOATS, **_FP8}, doc="dtype of the KV cache",
        also=("kv_cache_dtype", "kv_dtype", "cache_type_k", "cache_type_v"),
    ),
    Field(
        path="strategy.memory_fraction", type="number", low=0, high=1, above=True, kind="serve", optional=True,
        flags=("--memory-fraction",), doc="the engine's share of the card; without it, the engine's own",
        also=("gpu_memory_utilization", "mem_fraction_static", "free_gpu_memory_fraction"),
    ),
    Field(
        path="strategy.graphs", type="bool", default=False, kind="serve", flags=("--graphs",), doc="CUDA graphs",
        also=("cuda_graphs", "cuda_graph", "enforce_eager"),
    ),
    Field(
        path="strategy.cpu_layers", type="int", low=0, high=1 << 16, default=0, kind="serve", unit="layers",
        flags=("--cpu-layers",), doc="layers left on the host", also=("n_cpu_moe", "host_layers"),
    ),
    Field(
        path="hardware.gpu", type="gpu", high=256, optional=True, flags=("--gpu", "-g"),
        doc='the card; "8xh100" states the number too', also=("device", "gpu_type", "accelerator", "card", "gpu_name"),
    ),
    Field(
        path="hardware.gpus", type="int", low=1, high=MAX_DEGREE, derived=True, unit="GPUs", flags=("--gpus", "-n"),
        doc="number of GPUs in all", also=("num_gpus", "world_size", "n_gpus", "ngpus", "num_devices"),
    ),
    Field(
        path="hardware.gpus_per_node", type="int", low=1, high=MAX_DEGREE, derived=True, unit="GPUs",
        flags=("--gpus-per-node",), doc="number of GPUs in one node; without it, at most 8",
        also=("devices_per_node", "nproc_per_node"),
    ),
    Field(
        path="hardware.memory_gib", type="number", low=0, high=1 << 16, above=True, optional=True, unit="GiB",
        flags=("--memory-gib",), doc="memory of one card as CUDA reports it; overrides the catalog",
        also=("memory", "vram", "vram_gib", "gpu_memory", "memory_gb"),
    ),
    Field(
        path="hardware.others_gib", type="number", low=0, high=1 << 16, default=0.0, unit="GiB",
        flags=("--others-gib",), doc="what other processes hold on each card", also=("others", "reserved_gib"),
    ),
)  # fmt: skip

SECTIONS = ("model", "task", "strategy", "hardware")

BY_PATH: Mapping[str, Field] = MappingProxyType({f.path: f for f in FIELDS})
BY_NAME: Mapping[str, Field] = MappingProxyType({f.name: f for f in FIELDS})
BY_SECTION: Mapping[str, Mapping[str, Field]] = MappingProxyType(
    {
        section: MappingProxyType({intern(f.path.rpartition(".")[2]): f for f in FIELDS if f.section == section})
        for section in (*SECTIONS, "task.lora")
    }
)
FOREIGN: Mapping[str, Field] = MappingProxyType({name: f for f in FIELDS for name in f.also})
"""Names of other tools -> the field that says the same here."""
IRRELEVANT = frozenset(
    {
        "learning_rate",
        "lr",
        "lr_scheduler_type",
        "weight_decay",
        "warmup_steps",
        "warmup_ratio",
        "max_grad_norm",
        "max_steps",
        "train_steps",
        "num_train_epochs",
        "num_epochs",
        "epochs",
        "beta1",
        "beta2",
        "eps",
        "seed",
        "save_steps",
        "logging_steps",
        "output_dir",
        "dataset",
        "temperature",
        "top_p",
    }
)
"""Settings of other tools that memory and time do not depend on."""

TRAIN_ONLY = frozenset(f.name for f in FIELDS if f.kind == "train")
SERVE_ONLY = frozenset(f.name for f in FIELDS if f.kind == "serve")


def default_of(spec: Field, kind: str) -> Any:
    """The generic default of a field in a job of this kind."""
    return spec.serve if kind == "serve" and spec.serve is not None else spec.default
