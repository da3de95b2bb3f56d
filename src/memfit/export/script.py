"""Pieces of Python training scripts: model, adapters, optimizer, data; each is written only when the job needs it.

The scripts are for transformers 5.23, peft 0.21, bitsandbytes 0.50, torchao 0.18 and torch 2.13.
"""

from __future__ import annotations

from collections.abc import Sequence

from memfit.errors import JobError
from memfit.export import hf
from memfit.export.levers import cannot
from memfit.export.plan import Plan
from memfit.export.text import Setting, assignments, commented, header, python

OPTIMIZERS = ("adamw", "adamw-8bit", "adamw-4bit", "paged-adamw-8bit", "sgd", "momentum", "adafactor", "lion", "muon")
METHODS = ("full", "lora", "qlora", "dora", "freeze")
LEARNING_RATE = 2e-5


def head(plan: Plan, what: str, run: Sequence[str], imports: Sequence[str]) -> str:
    """The comment, the imports sorted, and the settings that the job decides."""
    names = sorted(set(imports))
    plain = [name for name in names if name.startswith("import ")]
    froms = [name for name in names if name.startswith("from ")]
    first = [name for name in plain if name.split()[1].split(".")[0] in _STANDARD]
    rest = [name for name in plain if name not in first]
    parts = [commented(header(plan, what, run)), "\n".join(first), "\n".join([*rest, *froms])]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n\n"


_STANDARD = frozenset({"argparse", "contextlib", "functools", "os", "types", "fnmatch", "sys"})


def settings(plan: Plan, more: Sequence[Setting] = ()) -> str:
    """The settings block of a script."""
    rows = [
        Setting("MODEL", plan.model),
        Setting("SEQ_LEN", plan.seq_len, plan.origin("seq_len")),
        Setting("MICRO_BATCH", plan.micro_batch, f"sequences per GPU and forward pass; {plan.origin('micro_batch')}"),
        Setting("GRAD_ACCUM", plan.grad_accum, f"global batch {plan.global_batch}; {plan.origin('grad_accum')}"),
        Setting("LEARNING_RATE", LEARNING_RATE, "yours to choose"),
        *more,
    ]
    return assignments(rows).replace("2e-05", "2e-5")


ARGUMENTS = """
def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="a text file, or tokens that torch.load reads; random tokens without it")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--random-weights", action="store_true", help="do not load the checkpoint's weights")
    parser.add_argument("--output", default="output")
    return parser.parse_args()
"""

DATA = '''
def token_stream(args, rank, world, device):
    """Endless micro-batches of this data-parallel rank: (MICRO_BATCH, SEQ_LEN) token numbers."""
    if args.data is None:
        size = AutoConfig.from_pretrained(MODEL).get_text_config().vocab_size
        tokens = torch.randint(size, (max(1 << 20, 4 * world * MICRO_BATCH * SEQ_LEN),))
    elif args.data.endswith(".pt"):
        tokens = torch.load(args.data, weights_only=True)
    else:
        with open(args.data, encoding="utf-8") as file:
            text = file.read()
        tokens = torch.tensor(AutoTokenizer.from_pretrained(MODEL)(text)["input_ids"])
    step = MICRO_BATCH * SEQ_LEN
    at = rank * step
    while True:
        if at + step > len(tokens):
            at = rank * step
        yield tokens[at : at + step].view(MICRO_BATCH, SEQ_LEN).to(device)
        at += world * step
'''


LAYERS = '''
def layers_of(model):
    """The list of transformer layers: the longest one outside vision towers."""
    lists = ((n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList))
    return max((m for name, m in lists if "vis" not in name), key=len)
'''


def model_imports(plan: Plan) -> list[str]:
    """Import lines of ``build_model`` and the data."""
    names = [
        "import argparse",
        "import torch",
        f"from transformers import AutoConfig, {hf.AUTO[plan.arch.kind]}, AutoTokenizer",
    ]
    if plan.adapters:
        names.append("from peft import LoraConfig, get_peft_model")
        if plan.weights in hf.QUANTIZED:
            names.append("from peft import prepare_model_for_kbit_training")
            names.append("from transformers import BitsAndBytesConfig")
    if plan.method == "freeze" and isinstance(plan.trainable, tuple):
        names.append("from fnmatch import fnmatch")
    return names


def build_model(plan: Plan, *, checkpoint: bool, device_map: str = "") -> str:
    """The function that loads the model and makes what is trained trainable.

    Args:
        plan: what is exported.
        checkpoint: activation checkpointing is by transformers' own switch.
        device_map: expression of the device that quantised weights are loaded to.
    """
    loaded = [f"dtype=torch.{hf.dtype(plan)}", f"attn_implementation={python(hf.ATTENTION[plan.attention])}"]
    auto = hf.AUTO[plan.arch.kind]
    lines = [
        "def build_model(args):",
        f"    # precision {plan.precision}: {plan.note('precision')}",
        f"    options = dict({', '.join(loaded)})",
    ]
    if plan.adapters and plan.weights in hf.QUANTIZED:
        lines += _quantised(plan, device_map)
    lines += [
        "    if args.random_weights:",
        f"        model = {auto}.from_config(AutoConfig.from_pretrained(MODEL), **options)",
        "    else:",
        f"        model = {auto}.from_pretrained(MODEL, **options)",
        "    model.config.use_cache = False",
    ]
    if plan.adapters:
        lines += _adapters(plan)
    elif plan.method == "freeze":
        lines += _frozen(plan)
    if checkpoint and plan.checkpointing == "full":
        lines.append(f"    # {plan.note('checkpointing')}")
        lines.append('    model.gradient_checkpointing_enable({"use_reentrant": False})')
        if plan.adapters:
            lines.append("    model.enable_input_require_grads()")
    return "\n".join([*lines, "    return model"]) + "\n"


def _quantised(plan: Plan, device_map: str) -> list[str]:
    if plan.weights == "int8":
        config = "load_in_8bit=True"
    else:
        kind = "fp4" if plan.weights == "fp4" else "nf4"
        config = f"load_in_4bit=True, bnb_4bit_quant_type={python(kind)}, bnb_4bit_compute_dtype=torch."
        config += f"{hf.compute_dtype(plan)}, bnb_4bit_use_double_quant={plan.weights == 'nf4-dq'}"
        if plan.zero == 3:
            config += ", bnb_4bit_quant_storage=torch.bfloat16"  # a floating dtype, so that FSDP can shard it
    lines = [f"    # frozen weights in {plan.weights}: {plan.note('weights')}"]
    lines.append(f'    options["quantization_config"] = BitsAndBytesConfig({config})')
    if device_map:
        lines.append(f'    options["device_map"] = {{"": {device_map}}}')
    return lines


def _adapters(plan: Plan) -> list[str]:
    lines = []
    if plan.weights in hf.QUANTIZED:
        lines.append("    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)")
    options = [
        f"r={plan.lora_rank}",
        f"lora_alpha={hf.alpha(plan)}",
        f"lora_dropout={float(plan.lora_dropout)}",
        f"target_modules={python(hf.targets(plan))}",
    ]
    if plan.lora_train_also:
        options.append(f"modules_to_save={python(list(plan.lora_train_also))}")
    if plan.method == "dora":
        options.append("use_dora=True")
    options.append(f"task_type={python(hf.task_type(plan))}")
    lines.append(f"    # method {plan.method}: {plan.origin('method')}")
    lines.append(f"    model = get_peft_model(model, LoraConfig({', '.join(options)}))")
    return lines


def _frozen(plan: Plan) -> list[str]:
    lines = [f"    # only a part is trained: trainable = {plan.trainable}"]
    if isinstance(plan.trainable, tuple):
        patterns = python(tuple(plan.trainable))
        test = f'any(fnmatch(name, pattern) or pattern in name.split(".") for pattern in {patterns})'
    else:
        lines.append("    layers = model.config.get_text_config().num_hidden_layers")
        count = plan.trainable if isinstance(plan.trainable, int) else None
        number = f"{count}" if count is not None else f"max(1, round({plan.trainable} * layers))"
        lines.append(f'    last = tuple(f"layers.{{i}}." for i in range(layers - {number}, layers))')
        test = "any(part in name for part in last)"
    dtype = hf.DTYPES[plan.weights]
    return [
        *lines,
        "    for name, parameter in model.named_parameters():",
        f"        parameter.requires_grad_({test})",
        "        if not parameter.requires_grad:",
        f"            parameter.data = parameter.data.to(torch.{dtype})",
    ]


def optimizer(plan: Plan) -> str:
    """The function that makes the optimizer from the trainable parameters."""
    body = {
        "adamw": "torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=trained[0].is_cuda)",
        "adamw-8bit": "AdamW8bit(trained, lr=LEARNING_RATE)",
        "adamw-4bit": "AdamW4bit(trained, lr=LEARNING_RATE)",
        "paged-adamw-8bit": "bnb.optim.PagedAdamW8bit(trained, lr=LEARNING_RATE)",
        "sgd": "torch.optim.SGD(trained, lr=LEARNING_RATE)",
        "momentum": "torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=0.9)",
        "adafactor": "torch.optim.Adafactor(trained, lr=LEARNING_RATE)",
        "lion": "bnb.optim.Lion(trained, lr=LEARNING_RATE)",
        "muon": "torch.optim.Muon([p for p in trained if p.ndim == 2], lr=LEARNING_RATE)",
    }[plan.optimizer]
    lines = ["def build_optimizer(trained):", f"    return {body}  # {plan.note('optimizer')}"]
    return "\n".join(lines) + "\n"


def optimizer_imports(plan: Plan) -> list[str]:
    """Import lines of the optimizer."""
    return {
        "adamw-8bit": ["from torchao.optim import AdamW8bit"],
        "adamw-4bit": ["from torchao.optim import AdamW4bit"],
        "paged-adamw-8bit": ["import bitsandbytes as bnb"],
        "lion": ["import bitsandbytes as bnb"],
    }.get(plan.optimizer, [])


def optimizer_faults(plan: Plan) -> list[JobError]:
    """Optimizers that do not go with sharding."""
    if plan.optimizer in ("paged-adamw-8bit", "lion") and plan.zero:
        why = "bitsandbytes does not update sharded parameters"
        return [cannot("strategy.optimizer", plan.optimizer, plan.target.tool, why=why, hint="optimizer = adamw-8bit")]
    return []
