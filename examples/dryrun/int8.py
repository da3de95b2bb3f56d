"""Inference on int8 weights with torchao: no optimizer, so the run goes to the script's end.

memfit dryrun --gpu rtx-4090 --steps 0 -- python examples/dryrun/int8.py
"""

from pathlib import Path

import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import AutoConfig, AutoModelForCausalLM

BATCH, PROMPT, NEW = 4, 1024, 16

config = AutoConfig.from_pretrained(Path(__file__).with_name("model"))
with torch.device("cuda"):
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
quantize_(model, Int8WeightOnlyConfig())
model.eval()
ids = torch.randint(config.vocab_size, (BATCH, PROMPT), device="cuda")
with torch.no_grad():
    out = model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, use_cache=True)
print("generated", tuple(out.shape))
