"""Training in float8 with torchao: linear layers multiply in 8 bits, weights stay in bfloat16.

memfit dryrun --gpu h100-sxm-80gb -- python examples/dryrun/float8.py
"""

from pathlib import Path

import torch
from torchao.float8 import convert_to_float8_training
from transformers import AutoConfig, AutoModelForCausalLM

BATCH, SEQ = 4, 2048

config = AutoConfig.from_pretrained(Path(__file__).with_name("model"))
with torch.device("cuda"):
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
convert_to_float8_training(model, module_filter_fn=lambda _module, name: "lm_head" not in name)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

for step in range(100):
    ids = torch.randint(config.vocab_size, (BATCH, SEQ), device="cuda")
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.4f}")
