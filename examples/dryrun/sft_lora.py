"""TRL's SFTTrainer with LoRA adapters of PEFT, on a model and a dataset of the hub that need not be here.

memfit dryrun --gpu rtx-4090 --fake-weights --fake-data chat -- python examples/dryrun/sft_lora.py
"""

import tempfile

from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

trainer = SFTTrainer(
    model="Qwen/Qwen3-0.6B",
    args=SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=4,
        max_length=2048,
        bf16=True,
        model_init_kwargs={"dtype": "bfloat16"},
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        max_steps=20,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
    ),
    train_dataset=load_dataset("trl-lib/Capybara", split="train"),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
)
trainer.train()
