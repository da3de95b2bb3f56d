"""DeepSpeed with ZeRO stage 3, one rank of eight.

memfit dryrun --gpu 8xrtx-4090 --ranks 8 -- torchrun --nproc-per-node 8 examples/dryrun/deepspeed_zero.py
"""

import sys
from pathlib import Path

import deepspeed
import torch
from transformers import AutoConfig, LlamaForCausalLM

BATCH, SEQ = 4, 2048
STAGE = int(sys.argv[1]) if len(sys.argv) > 1 else 3

deepspeed.init_distributed()
settings = {
    "train_micro_batch_size_per_gpu": BATCH,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": STAGE},
    "gradient_clipping": 1.0,
}
config = AutoConfig.from_pretrained(Path(__file__).with_name("model"))
with deepspeed.zero.Init(config_dict_or_path=settings, enabled=STAGE == 3):
    model = LlamaForCausalLM(config).bfloat16()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)

for step in range(100):
    ids = torch.randint(config.vocab_size, (BATCH, SEQ), device=engine.device)
    loss = engine(input_ids=ids, labels=ids).loss
    engine.backward(loss)
    engine.step()
    print(f"step {step}: loss {loss.item():.4f}")
