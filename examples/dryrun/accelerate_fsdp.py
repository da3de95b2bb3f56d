"""accelerate launch with FSDP: the launcher and the library are the real ones, the other ranks do not exist.

memfit dryrun --gpu 8xrtx-4090 --ranks 8 -- accelerate launch --use_fsdp --fsdp_version 2 --mixed_precision bf16 \
    --num_processes 8 --num_machines 1 --dynamo_backend no \
    --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --fsdp_transformer_layer_cls_to_wrap LlamaDecoderLayer \
    examples/dryrun/accelerate_fsdp.py
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM

BATCH, SEQ = 4, 2048

accelerator = Accelerator()
config = AutoConfig.from_pretrained(Path(__file__).with_name("model"))
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
data = DataLoader([torch.arange(SEQ) for _ in range(2048)], batch_size=BATCH)
model, optimizer, data = accelerator.prepare(model, optimizer, data)
model.train()
for step, ids in enumerate(data):
    loss = model(input_ids=ids, labels=ids).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    accelerator.print(f"step {step}: loss {loss.item():.4f}")
