"""FSDP2 on a model of any size of memfit's catalog or a folder: one rank of many, built without weights.

memfit dryrun --gpu 8xh100-sxm-80gb --ranks 512 -- torchrun --nnodes 64 --nproc-per-node 8 examples/dryrun/fsdp2.py 405b
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights

BATCH, SEQ = 1, 4096
SIZES = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "405b": {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128},
}

dist.init_process_group("nccl")
torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
mesh = init_device_mesh("cuda", (dist.get_world_size(),))
size = sys.argv[1] if len(sys.argv) > 1 else ""
if size:
    config = LlamaConfig(vocab_size=128256, num_key_value_heads=8, use_cache=False, **SIZES[size])
else:
    config = AutoConfig.from_pretrained(Path(__file__).with_name("model"))
with torch.device("meta"), no_init_weights():
    model = LlamaForCausalLM(config)
model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
for layer in model.model.layers:
    fully_shard(layer, mesh=mesh, mp_policy=policy)
fully_shard(model, mesh=mesh, mp_policy=policy)
model.to_empty(device="cuda")
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

for step in range(100):
    ids = torch.randint(config.vocab_size, (BATCH, SEQ), device="cuda")
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if dist.get_rank() == 0:
        print(f"step {step}: loss {loss.item():.4f}")
