"""Released CUDA wheels of torch on the imaginary GPU: what their own code sees, allocates and complains about."""

from __future__ import annotations

import json
import os
import re
import subprocess
import textwrap

import pytest

from memfit.errors import MemfitError
from memfit.hardware import gpus
from memfit.mirage import prepare
from memfit.mirage.environments import find_environment, make_environment, plan_environment

pytestmark = [pytest.mark.mirage, pytest.mark.timeout(900)]

RELEASES = ("2.13.0", "2.15.0", "2.9.1")
CARDS = {gpu.name: gpu for gpu in gpus()}
GIB, MIB = 1 << 30, 1 << 20
HEAD = """
import json, resource, torch
F, GIB, MIB = torch.nn.functional, 1 << 30, 1 << 20
"""
# os._exit: torch 2.15 can abort in its own threads when a script ends right after a backward pass
END = """
import os, sys
print("\\n" + json.dumps(answer), flush=True)
sys.stderr.flush()
os._exit(0)
"""


@pytest.fixture(scope="module", params=RELEASES)
def python(request):
    """The interpreter of an environment with one release; made in the cache the first time (0.5 to 0.9 GB)."""
    found = find_environment(request.param)
    if found is None:
        try:
            found = make_environment(plan_environment(request.param))
        except MemfitError as error:
            pytest.skip(f"torch {request.param} cannot be had here: {error.message}")
    return found


@pytest.fixture
def torch(python):
    """Run a few lines of torch; what they leave in ``answer`` comes back."""

    def run(code, card="h100-sxm-80gb", variables=None, **settings):
        try:
            environment = prepare(python, CARDS[card], **settings)
        except MemfitError as error:
            pytest.skip(f"no imaginary GPU here: {error.message}")
        script = HEAD + textwrap.dedent(code) + END
        done = subprocess.run(
            [str(python), "-c", script],
            env={**os.environ, **environment, **(variables or {})},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.parametrize("card", ["h100-sxm-80gb", "rtx-4090", "b200-sxm", "t4"])
def test_torch_sees_the_card(torch, card):
    answer = torch(
        """
        p = torch.cuda.get_device_properties(2)
        answer = dict(count=torch.cuda.device_count(), name=p.name, capability=[p.major, p.minor],
            total=p.total_memory, sms=p.multi_processor_count, threads=p.max_threads_per_multi_processor,
            warp=p.warp_size, registers=p.regs_per_multiprocessor, shared=p.shared_memory_per_block_optin,
            shared_sm=p.shared_memory_per_multiprocessor, l2=p.L2_cache_size, free=torch.cuda.mem_get_info(2))
        """,
        card,
        count=4,
    )
    gpu = CARDS[card]
    assert answer["count"] == 4
    assert answer["name"] == gpu.title
    assert answer["capability"] == list(gpu.compute_capability)
    assert answer["total"] == gpu.total_bytes
    assert answer["sms"] == gpu.sm_count
    assert (answer["warp"], answer["registers"]) == (32, 65536)
    # threads and shared memory in KiB, as the CUDA programming guide lists them for 9.0, 10.0, 8.9 and 7.5
    shape = {(9, 0): (2048, 227, 228), (10, 0): (2048, 227, 228), (8, 9): (1536, 99, 100), (7, 5): (1024, 64, 64)}
    found = answer["threads"], answer["shared"] >> 10, answer["shared_sm"] >> 10
    assert found == shape[gpu.compute_capability]
    assert answer["free"] == [gpu.total_bytes - gpu.context_bytes, gpu.total_bytes]


STEP = """
class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.out = torch.nn.LayerNorm(width), torch.nn.Linear(width, width)
        self.qkv, self.up, self.down = (torch.nn.Linear(width, n * width) for n in (3, 4, 4))
        self.down = torch.nn.Linear(4 * width, width)
    def forward(self, x):
        b, s, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, s, 3, w // 128, 128).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, s, w))
        return x + self.down(F.gelu(self.up(self.norm(x))))
def step(layers=4, width=2048, tokens=2048, steps=2, vocabulary=32000):
    with torch.device("cuda"):
        model = torch.nn.Sequential(torch.nn.Embedding(vocabulary, width), *(Block(width) for _ in range(layers)),
                                    torch.nn.Linear(width, vocabulary, bias=False)).bfloat16()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(steps):
            ids = torch.zeros(2, tokens, dtype=torch.long)
            loss = F.cross_entropy(model(ids).float().view(-1, vocabulary), ids.view(-1))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        stats = torch.cuda.memory_stats()
    return [stats[f"{what}_bytes.all.peak"] for what in ("requested", "allocated", "reserved")], loss.item()
"""


def test_a_training_step_takes_the_same_bytes_each_time_and_no_host_memory(torch):
    code = STEP + "answer = [*step(layers=24, width=4096), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024]"
    (bytes_, loss, host_mib), again = torch(code), torch(code)
    assert again[0] == bytes_
    assert loss == 0.0
    requested, allocated, reserved = bytes_
    assert 40 * GIB < requested <= allocated <= reserved < 79 * GIB
    assert allocated - requested < 0.01 * requested
    assert host_mib < 2048


@pytest.mark.parametrize("variables", [{}, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}])
def test_a_step_fits_where_the_driver_has_its_bytes_and_not_far_below(torch, variables):
    """The peak is what torch asks for; the smallest capacity lies between it and what it reserves without limit."""
    (_, allocated, reserved), _ = torch(STEP + "answer = step()", variables=variables)
    context = 500 * MIB
    code = f"{STEP}\ntry: answer = step() and True\nexcept torch.OutOfMemoryError as error: answer = str(error)\n"
    fits = torch(code, variables=variables, total_bytes=reserved + context, context_bytes=context)
    fails = torch(code, variables=variables, total_bytes=allocated - 32 * MIB + context, context_bytes=context)
    assert fits is True
    assert "out of memory" in fails


@pytest.mark.parametrize(
    ("variables", "slack"),
    [({}, 2 * MIB), ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, 20 * MIB)],
)
def test_out_of_memory_comes_at_the_byte_and_its_text_adds_up(torch, variables, slack):
    answer = torch(
        """
        held = []
        try:
            while True: held.append(torch.empty(16 * MIB, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError as error: text = str(error)
        answer = [len(held), text, torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()]
        """,
        variables=variables,
        total_bytes=8 * GIB,
        context_bytes=512 * MIB,
    )
    count, text, free, reserved = answer
    assert reserved == 8 * GIB - 512 * MIB - free
    assert free < 20 * MIB + slack
    assert count == reserved // (16 * MIB)
    number = r"([\d.]+)"
    said = re.search(rf"capacity of {number} GiB of which {number} (\w+) is free.*process has {number} GiB", text)
    assert said, text
    unit = {"bytes": 1, "KiB": 1 << 10, "MiB": MIB}[said[3]]
    assert float(said[1]) == 8.0
    assert float(said[2]) * unit == pytest.approx(free, abs=0.01 * MIB)
    assert float(said[4]) == pytest.approx((8 * GIB - free) / GIB, abs=0.01)


def test_kernels_that_ask_libraries_run(torch):
    answer = torch(
        """
        answer = []
        x = torch.randn(2, 8, 1024, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        F.scaled_dot_product_attention(x, x, x, is_causal=True).sum().backward()
        image = torch.randn(4, 3, 64, 64, device="cuda")
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).cuda()
        net(image).sum().backward()
        answer.append(list(net[0].weight.grad.shape))
        table = torch.nn.Embedding(1000, 64, device="cuda")
        table(torch.zeros(5000, dtype=torch.long, device="cuda")).sum().backward()
        a = torch.randn(64, 64, device="cuda")
        results = [torch.linalg.svd(a).S, torch.linalg.cholesky(a), torch.fft.rfft(a), torch.topk(a, 5).values]
        answer += [list(result.shape) for result in results]
        answer += [int(torch.nonzero(a).shape[0]), torch.tensor([1, 2], device="cuda").tolist()]
        """
    )
    assert answer == [[8, 3, 3, 3], [64], [64, 64], [64, 33], [64, 5], 0, [1, 2]]


def test_a_card_that_the_wheel_has_no_code_for_fails_as_a_real_one(torch, python):
    if "2.9" in str(python):
        pytest.skip("this release still has code for Volta in its CUDA 12 wheel")
    answer = torch(
        """
        try: torch.ones(4, device="cuda"); answer = ""
        except Exception as error: answer = str(error)
        """,
        "v100-sxm-16gb",
    )
    assert "no kernel image is available" in answer


def test_graphs_pools_and_other_allocators(torch):
    answer = torch(
        """
        net, x = torch.nn.Linear(1024, 1024).cuda(), torch.randn(64, 1024, device="cuda")
        side = torch.cuda.Stream()
        with torch.cuda.stream(side): net(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph): y = net(x)
        graph.replay()
        pool = torch.cuda.MemPool()
        with torch.cuda.use_mem_pool(pool): z = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
        private = [s for s in torch.cuda.memory_snapshot() if tuple(s["segment_pool_id"]) != (0, 0)]
        answer = [list(y.shape), len(private) >= 2, torch.empty(1 << 20, pin_memory=True).is_pinned()]
        """
    )
    assert answer == [[64, 1024], True, True]
    asynchronous = torch(
        """
        x = torch.empty(100 * MIB, dtype=torch.uint8, device="cuda")
        answer = [torch.cuda.max_memory_allocated() // MIB, torch.cuda.memory_reserved() // MIB]
        """,
        variables={"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"},
    )
    assert asynchronous == [100, 128]


def test_ddp_over_the_real_nccl_process_group_of_a_stated_world(torch):
    answer = torch(
        STEP
        + """
import torch.distributed as dist
dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=8)
model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(8))).cuda()
before = torch.cuda.memory_allocated()
# all ranks run this script; torch 2.15 gathers their shapes with a kernel, whose results are not known
torch.nn.parallel.distributed._verify_param_shape_across_processes = lambda *_: None
ddp = torch.nn.parallel.DistributedDataParallel(model)
buckets = torch.cuda.memory_allocated() - before
for _ in range(3): ddp(torch.randn(8, 1024, device="cuda")).sum().backward()
x = torch.ones(4, device="cuda"); dist.all_reduce(x)
parts = [torch.empty_like(x) for _ in range(8)]; dist.all_gather(parts, x)
answer = [dist.get_world_size(), dist.get_rank(), buckets, sum(p.numel() * 4 for p in model.parameters())]
"""
    )
    world, rank, buckets, parameters = answer
    assert (world, rank) == (8, 0)
    assert parameters <= buckets < 1.05 * parameters


def test_late_events_keep_blocks_that_another_stream_used(torch):
    code = """
        side = torch.cuda.Stream()
        torch.cuda.synchronize()
        for _ in range(4):
            x = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
            x.record_stream(side)
            del x
        answer = torch.cuda.memory_reserved() // MIB
        """
    assert torch(code, lag=0) == 64
    assert torch(code, lag=None) == 256
