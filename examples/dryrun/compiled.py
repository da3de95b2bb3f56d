"""The plain loop through torch.compile: Inductor plans the buffers, Triton compiles real kernels for the card.

memfit dryrun --gpu h100-sxm-80gb -- python examples/dryrun/compiled.py
"""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

BATCH, SEQ = 4, 2048

config = AutoConfig.from_pretrained(Path(__file__).with_name("model"), num_hidden_layers=4)
with torch.device("cuda"):
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
compiled = torch.compile(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

for step in range(100):
    ids = torch.randint(config.vocab_size, (BATCH, SEQ), device="cuda")
    loss = compiled(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.4f}")
