"""The Trainer of transformers: bf16 mixed precision, gradient checkpointing and accumulation.

memfit dryrun --gpu rtx-4090 -- python examples/dryrun/hf_trainer.py
"""

import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

BATCH, SEQ = 4, 2048

config = AutoConfig.from_pretrained(Path(__file__).with_name("model"))
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
row = torch.arange(SEQ)
data = [{"input_ids": row, "labels": row} for _ in range(256)]
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    per_device_train_batch_size=BATCH,
    gradient_accumulation_steps=2,
    bf16=True,
    gradient_checkpointing=True,
    gradient_checkpointing_kwargs={"use_reentrant": False},
    optim="adamw_torch_fused",
    max_steps=20,
    logging_steps=1,
    save_strategy="no",
    report_to=[],
)
Trainer(model=model, args=arguments, train_dataset=data).train()
