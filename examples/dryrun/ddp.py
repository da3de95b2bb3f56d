"""DistributedDataParallel under torchrun: one rank of sixteen, with its gradient buckets.

memfit dryrun --gpu 8xrtx-4090 --ranks 16 -- torchrun --nnodes 2 --nproc-per-node 8 examples/dryrun/ddp.py
"""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

BATCH, SEQ = 4, 2048

dist.init_process_group("nccl")
device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
torch.cuda.set_device(device)
config = AutoConfig.from_pretrained(Path(__file__).with_name("model"))
model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(device)
model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[device.index], gradient_as_bucket_view=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

for step in range(100):
    ids = torch.randint(config.vocab_size, (BATCH, SEQ), device=device)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    dist.all_reduce(loss.detach())
    if dist.get_rank() == 0:
        print(f"step {step}: loss {loss.item():.4f}")
dist.destroy_process_group()
