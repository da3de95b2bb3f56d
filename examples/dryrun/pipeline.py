"""A pipeline of four stages (1F1B) of torch.distributed.pipelining; the first rank of each stage is run in turn.

memfit dryrun --gpu 4xrtx-4090 --ranks 4 --stages 4 -- torchrun --nproc-per-node 4 examples/dryrun/pipeline.py
"""

import os

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn import functional

HIDDEN, LAYERS, MICRO_BATCHES, SEQ = 2048, 4, 8, 2048


class Block(torch.nn.Module):
    """Half of a transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.RMSNorm(HIDDEN)
        self.up = torch.nn.Linear(HIDDEN, 4 * HIDDEN, bias=False)
        self.down = torch.nn.Linear(4 * HIDDEN, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One residual step."""
        return x + self.down(functional.silu(self.up(self.norm(x))))


dist.init_process_group("nccl")
rank, stages = dist.get_rank(), dist.get_world_size()
device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
torch.cuda.set_device(device)
torch.set_default_dtype(torch.bfloat16)
with device:
    part = torch.nn.Sequential(*[Block() for _ in range(LAYERS)])
optimizer = torch.optim.AdamW(part.parameters(), lr=1e-4)
stage = PipelineStage(part, rank, stages, device)
schedule = Schedule1F1B(stage, MICRO_BATCHES, loss_fn=lambda y, target: functional.mse_loss(y, target))

for _ in range(100):
    batch = torch.randn(MICRO_BATCHES, SEQ, HIDDEN, device=device)
    if rank == 0:
        schedule.step(batch)
    elif rank == stages - 1:
        schedule.step(target=batch)
    else:
        schedule.step()
    optimizer.step()
    optimizer.zero_grad()
