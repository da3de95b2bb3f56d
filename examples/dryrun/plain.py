"""A plain PyTorch loop: bfloat16 weights, fused AdamW, clipping.

memfit dryrun --gpu rtx-4090 -- python examples/dryrun/plain.py
"""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

BATCH, SEQ = 4, 2048

config = AutoConfig.from_pretrained(Path(__file__).with_name("model"))
with torch.device("cuda"):
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

for step in range(100):
    ids = torch.randint(config.vocab_size, (BATCH, SEQ), device="cuda")
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.4f}")
