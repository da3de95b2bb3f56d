"""transformers Trainer: a script, and a YAML that fills its arguments."""

from __future__ import annotations

from collections.abc import Iterator

from memfit.errors import JobError
from memfit.export import hf, launch, script
from memfit.export.levers import ADAPTERS, rules, written
from memfit.export.plan import Plan
from memfit.export.reading import Found, Keys, Source
from memfit.export.target import File, Target
from memfit.export.text import Setting, commented, header, json_text, python, yaml


def _check(plan: Plan) -> Iterator[JobError]:
    yield from hf.checks(plan, hf.engine(plan))


def settings(plan: Plan) -> list[Setting]:
    """The keys of the script's own arguments and of TrainingArguments."""
    title = "", None
    rows = [Setting(*title, "model"), *hf.model_settings(plan)]
    if plan.method == "freeze":
        rows.append(Setting("trainable", _trainable(plan), "what is trained: all else is frozen"))
        rows.append(Setting("frozen_dtype", hf.DTYPES[plan.weights], plan.origin("weights")))
    rows += [
        Setting(*title, "data: yours to choose; a text file, random tokens without it"),
        Setting("data_file", None),
        Setting("seq_len", plan.seq_len, plan.origin("seq_len")),
        Setting(*title, "memory and speed"),
        *hf.arguments(plan, hf.engine(plan)),
    ]
    if plan.loss == "fused":
        rows += hf.liger(plan)
    return [
        *rows,
        Setting(*title, "yours to choose"),
        Setting("learning_rate", script.LEARNING_RATE),
        Setting("max_steps", 1000),
        Setting("logging_steps", 10),
        Setting("output_dir", "output"),
    ]


def _trainable(plan: Plan) -> list[str]:
    if isinstance(plan.trainable, tuple):
        return list(plan.trainable)
    return [f"{plan.trainable:g}"]


SCRIPT = '''
@dataclass
class Arguments:
    """What TrainingArguments do not have."""

    model_name_or_path: str
    dtype: str = "float32"
    attn_implementation: str = "sdpa"
    seq_len: int = 4096
    data_file: str | None = None
    random_weights: bool = field(default=False, metadata={"help": "do not load the checkpoint's weights"})
    use_peft: bool = False
    use_dora: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: list[str] = field(default_factory=list)
    lora_modules_to_save: list[str] = field(default_factory=list)
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: str = "nf4"
    bnb_4bit_quant_storage: str = "uint8"
    use_bnb_nested_quant: bool = False
    trainable: list[str] = field(default_factory=list, metadata={"help": "names, patterns, or a number of last layers"})
    frozen_dtype: str = "bfloat16"


def build_model(args):
    options = {"dtype": getattr(torch, args.dtype), "attn_implementation": args.attn_implementation}
    if args.load_in_4bit or args.load_in_8bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=args.load_in_4bit,
            load_in_8bit=args.load_in_8bit,
            bnb_4bit_quant_type=args.bnb_4bit_quant_type,
            bnb_4bit_quant_storage=args.bnb_4bit_quant_storage,
            bnb_4bit_use_double_quant=args.use_bnb_nested_quant,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    if args.random_weights:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.model_name_or_path), **options)
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, **options)
    model.config.use_cache = False
    if args.use_peft:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        if args.load_in_4bit or args.load_in_8bit:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        names = args.lora_target_modules
        adapters = LoraConfig(
            r=args.lora_r,
            lora_alpha=args.lora_alpha,
            lora_dropout=args.lora_dropout,
            target_modules=names[0] if names == ["all-linear"] else names,
            modules_to_save=args.lora_modules_to_save or None,
            use_dora=args.use_dora,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, adapters)
        model.enable_input_require_grads()
    elif args.trainable:
        freeze(model, args.trainable, getattr(torch, args.frozen_dtype))
    return model


def freeze(model, trainable, dtype):
    """Train what is named: names, patterns, a number of last layers, or a fraction of the layers below 1."""
    number = float(trainable[0]) if len(trainable) == 1 and trainable[0].replace(".", "", 1).isdigit() else None
    if number is not None:
        layers = model.config.get_text_config().num_hidden_layers
        count = max(1, round(number * layers)) if "." in trainable[0] else int(number)
        trainable = [f"*layers.{i}.*" for i in range(layers - count, layers)]
    for name, parameter in model.named_parameters():
        wanted = any(fnmatch(name, pattern) or pattern in name.split(".") for pattern in trainable)
        parameter.requires_grad_(wanted)
        if not wanted:
            parameter.data = parameter.data.to(dtype)


class Tokens(torch.utils.data.Dataset):
    """Sequences of seq_len tokens, without padding."""

    def __init__(self, args, vocab_size):
        if args.data_file is None:
            tokens = torch.randint(vocab_size, (256 * args.seq_len,))
        else:
            with open(args.data_file, encoding="utf-8") as file:
                text = file.read()
            tokens = torch.tensor(AutoTokenizer.from_pretrained(args.model_name_or_path)(text)["input_ids"])
        self.rows = tokens[: len(tokens) // args.seq_len * args.seq_len].view(-1, args.seq_len)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def main():
    parser = HfArgumentParser((Arguments, TrainingArguments))
    (args, training), rest = parser.parse_yaml_file(sys.argv[1]), sys.argv[2:]
    if "--cpu" in rest:  # a try without a GPU
        training = dataclasses.replace(training, use_cpu=True, max_steps=2, save_strategy="no")
    args.random_weights = args.random_weights or "--random-weights" in rest
    torch.manual_seed(training.seed)
    model = build_model(args)
    data = Tokens(args, model.config.get_text_config().vocab_size)
    trainer = Trainer(model=model, args=training, train_dataset=data)
    trainer.train()
    trainer.save_model(training.output_dir)


if __name__ == "__main__":
    main()
'''

_IMPORTS = [
    "import dataclasses",
    "import sys",
    "from dataclasses import dataclass, field",
    "from fnmatch import fnmatch",
    "import torch",
    "from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig",
    "from transformers import HfArgumentParser, Trainer, TrainingArguments",
]


def _script(plan: Plan) -> str:
    """The script with the classes of the model's kind and the dtype of the autocast."""
    text = "\n".join(_IMPORTS) + "\n\n" + SCRIPT
    text = text.replace(hf.AUTO["decoder"], hf.AUTO[plan.arch.kind])
    text = text.replace('task_type="CAUSAL_LM"', f"task_type={python(hf.task_type(plan))}")
    return text.replace("compute_dtype=torch.bfloat16", f"compute_dtype=torch.{hf.compute_dtype(plan)}")


def command(plan: Plan) -> str:
    """What one machine starts."""
    return launch.torchrun(plan, "train.py training.yaml")


def write(plan: Plan) -> list[File]:
    """The script, its arguments, and DeepSpeed's JSON when ZeRO is DeepSpeed's."""
    text = commented(header(plan, "arguments of train.py", [command(plan)])) + "\n" + yaml(settings(plan))
    lines = ["training script on transformers' Trainer; every lever stands in training.yaml."]
    files = [
        File(name="training.yaml", text=text),
        File(name="train.py", text=commented(lines) + "\n" + _script(plan)),
    ]
    if hf.engine(plan) == "deepspeed":
        files.append(File(name="deepspeed.json", text=json_text(hf.deepspeed_config(plan, trainer=True))))
    run = launch.run_script(plan, "start of the Trainer script", command(plan))
    return [*files, File(name="run.sh", text=run, executable=True)]


def read(source: Source) -> Found:
    """Fields from TrainingArguments as YAML or JSON, with the model's keys where they are beside."""
    found = Found()
    keys = Keys(source.tree, found)
    loaded = hf.read_model(keys, found)
    found.set("seq_len", keys.whole("seq_len", "max_seq_length", "block_size", "model_max_length"))
    names = keys.names("trainable")
    frozen = keys.word(hf.DTYPES_READ, "frozen_dtype")
    if names:
        found.set("method", "freeze")
        found.set("weights", frozen)
        found.set("trainable", _read_trainable(names))
    for key in ("data_file", "random_weights"):
        keys.take(key)
    bf16, fp16 = keys.flag("bf16"), keys.flag("fp16")
    hf.read_arguments(source, keys, found)
    hf.settle_precision(found, None if found.get("method") == "freeze" else loaded, bf16=bf16, fp16=fp16)
    if found.get("method") == "freeze" and not (bf16 or fp16):
        found.values["strategy.precision"] = loaded or "fp32"
    found.set("framework", "transformers")
    if found.get("zero") == 3 and "deepspeed" not in source.tree:
        found.set("framework_version", "fsdp")
    keys.rest(also=("include_num_input_tokens_seen", "group_by_length"))
    return found


def _read_trainable(names: tuple[str, ...]) -> int | float | tuple[str, ...]:
    first = names[0]
    if len(names) == 1 and first.replace(".", "", 1).isdigit():
        return float(first) if "." in first else int(first)
    return names


TARGET = Target(
    name="transformers",
    title="transformers",
    version="5.23",
    about="script on transformers' Trainer with a YAML of its arguments, DeepSpeed JSON for ZeRO or FSDP2 inside",
    checked="HfArgumentParser with TrainingArguments; a short run of the script on two CPU processes",
    framework=("transformers", None),
    variant=lambda job: ("transformers", "fsdp" if hf.engine_of(job) == "fsdp" else None),
    levers=rules(
        name=written(),
        config=written(),
        method=written(*script.METHODS),
        seq_len=written(),
        **ADAPTERS,
        precision=written(*hf.PRECISIONS),
        optimizer=written(*hf.OPTIM, "momentum"),
        micro_batch=written(),
        grad_accum=written(),
        dp=written(),
        zero=written(),
        reshard=written(),
        checkpointing=written("none", "full"),
        compile=written(),
        attention=written("flash", "sdpa", "eager"),
        loss=written("eager", "fused"),
        offload=written("optimizer", "parameters", "gradients"),
        weights=written(*hf.WEIGHTS),
        gpus=written(),
        gpus_per_node=written(),
    ),
    kinds=hf.KINDS,
    check=_check,
    write=write,
    read=read,
    command=command,
    marks=(
        frozenset({"per_device_train_batch_size"}),
        frozenset({"output_dir", "gradient_accumulation_steps"}),
        frozenset({"output_dir", "learning_rate"}),
    ),
)
