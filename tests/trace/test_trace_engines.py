import subprocess
import sys

import pytest
from trace_programs import GPT2, LLAMA, MIXTRAL, traced

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

D, F, V, L, H, K, B, S = 128, 320, 1024, 2, 4, 2, 2, 256
N = D // H
LINEAR = D * H * N * 2 + D * K * N * 2 + 3 * D * F
PARAMETERS = 2 * V * D + D + L * (LINEAR + 2 * D)


def bytes_of(trace, component, index=None):
    blocks = trace.live(trace.peak()[0] if index is None else index)
    return sum(b.bytes for b in blocks if b.component == component)


def shape_of_events(trace):
    return [(e.bytes, e.phase, e.step, trace.blocks[e.id].component) for e in trace.events]


def test_parameters_gradients_and_states_are_exact():
    trace = traced(optimizer="adamw-fused")
    after_backward = max(i for i, e in enumerate(trace.events) if e.phase == "backward" and e.step == 1)
    rotary = N // 2 * 4 * 2  # two buffers of fp32 frequencies
    assert bytes_of(trace, "parameters", after_backward) == 2 * PARAMETERS + rotary
    assert bytes_of(trace, "gradients", after_backward) == 2 * PARAMETERS
    steps = 4 * len({b.module for b in trace.live(after_backward) if b.component == "gradients"})
    assert bytes_of(trace, "optimizer", after_backward) == 2 * 2 * PARAMETERS + steps


def test_a_layer_keeps_what_its_formula_says():
    """Per token of one layer, bf16: two norms (fp32 copy, fp32 rsqrt, two bf16), q, k, v, out, lse, four of the MLP."""
    held = [b for b in traced().held() if "0" in b.module.split(".")]
    norms = 2 * (4 * D + 4 + 2 * D + 2 * D)
    attention = 2 * (H * N + K * N + K * N) + 2 * H * N + 4 * H
    seeds = 16 + 8  # state of the generator, kept by flash attention
    assert sum(b.bytes for b in held) == B * S * (norms + attention + 2 * 4 * F) + seeds


def test_both_engines_see_the_same_events():
    for fields in ({}, {"checkpointing": 1}, {"config": GPT2}, {"config": MIXTRAL, "grad_accum": 2}):
        assert shape_of_events(traced("meta", **fields)) == shape_of_events(traced("fake-cuda", **fields))


def test_nothing_leaks_from_step_to_step():
    trace = traced()
    ends = [
        {b.id: b.bytes for b in trace.live(max(i for i, e in enumerate(trace.events) if e.step == step))}
        for step in (0, 1)
    ]
    assert sum(ends[0].values()) == sum(ends[1].values())


def test_checkpointing_keeps_only_the_inputs_of_the_layers():
    everything, nothing, half = (sum(b.bytes for b in traced(checkpointing=n).held()) for n in (0, 1, 2))
    assert nothing < half < everything
    layers = [b for b in traced(checkpointing=1).held() if any(p.isdigit() for p in b.module.split("."))]
    assert [b.bytes for b in layers] == [B * S * D * 2] * (L - 1), "the last layer's output is not an input of another"


def test_selective_checkpointing_keeps_attention_and_every_second_product():
    trace = traced(checkpointing=1, selective=True)
    layer = [b for b in trace.held() if "1" in b.module.split(".")]
    kept = {b.module.rpartition(".")[2] for b in layer if b.op == "aten::mm"}
    assert kept == {"q_proj", "v_proj", "gate_proj", "down_proj"}, "of q, k, v, o, gate, up, down"
    assert any("attention" in b.op for b in layer)
    sizes = [sum(b.bytes for b in t.held()) for t in (traced(), trace, traced(checkpointing=1))]
    assert sizes[0] > sizes[1] > sizes[2]


def test_recomputed_blocks_say_so():
    trace = traced(checkpointing=1)
    again = [b for b in trace.blocks.values() if b.recompute]
    assert again
    assert all(b.phase == "backward" and b.module for b in again)
    assert not any(b.recompute for b in traced().blocks.values())


def test_accumulated_gradients_reuse_the_first_micro_batch_s_memory():
    once, thrice = traced(batch=1), traced(batch=1, grad_accum=3)
    for trace in (once, thrice):
        end = max(i for i, e in enumerate(trace.events) if e.phase == "backward" and e.step == 1)
        assert bytes_of(trace, "gradients", end) == 2 * PARAMETERS


def test_residual_gradients_are_added_in_place():
    assert traced().settings["in_place_accumulations"] > 2 * L


def test_optimizer_in_backward_never_holds_all_gradients():
    trace = traced(optimizer="sgd", optimizer_in_backward=True)
    most = max(bytes_of(trace, "gradients", i) for i in range(0, len(trace.events), 3))
    assert 0 < most < PARAMETERS


def test_eager_attention_makes_square_matrices_and_flash_does_not():
    squares = {
        kind: sum(1 for b in traced(attention=kind).blocks.values() if b.shape[-2:] == (S, S) and len(b.shape) == 4)
        for kind in ("eager", "sdpa", "flash")
    }
    assert squares["eager"] > 0
    assert squares["sdpa"] == squares["flash"] == 0


def test_adapters_train_nothing_else():
    trace = traced(lora={"r": 16, "target_modules": "all-linear"}, seq=64)
    end = max(i for i, e in enumerate(trace.events) if e.phase == "backward" and e.step == 1)
    gradients = {b.module for b in trace.live(end) if b.component == "gradients"}
    assert gradients
    assert all("lora_" in name for name in gradients)


def test_sharding_divides_the_states_by_the_ranks():
    sizes = {}
    for ranks in (2, 8):
        trace = traced(params="fp32", ranks=ranks, shard=True, compute="bf16", reduce="fp32")
        sizes[ranks] = bytes_of(trace, "optimizer", len(trace.events) - 1)
        assert len({e.stream for e in trace.events}) > 1, "collectives have streams of their own"
        assert any(b.component == "communication" for b in trace.blocks.values())
    assert sizes[2] == pytest.approx(2 * 4 * PARAMETERS / 2, rel=0.01)
    assert sizes[2] == pytest.approx(4 * sizes[8], rel=0.01)


def test_tensor_parallel_ranks_hold_their_share_of_the_weights():
    one, two = (
        bytes_of(t, "parameters", max(i for i, e in enumerate(t.events) if e.phase == "load"))
        for t in (traced("fake-cuda"), traced(tp=2))
    )
    assert two < 0.55 * one


def test_pipeline_stages_hold_their_layers():
    config = {**LLAMA, "num_hidden_layers": 4}
    fields = {"stages": 2, "stage_layers": 2, "grad_accum": 2, "optimizer": "none"}
    first, last = (traced(config=config, stage=stage, **fields) for stage in (0, 1))
    body = 2 * (2 * LINEAR + 2 * 2 * D) + N // 2 * 4 * 2
    sizes = [bytes_of(t, "parameters", sum(e.phase == "load" for e in t.events) - 1) for t in (first, last)]
    assert sizes == [body + 2 * V * D, body + 2 * (V * D + D)]


def test_a_pipeline_schedule_decides_how_many_micro_batches_are_in_flight():
    def kept(schedule, micro_batches):
        fields = {"schedule": schedule, "grad_accum": micro_batches, "optimizer": "none"}
        trace = traced(hidden=False, stages=2, stage=0, stage_layers=1, **fields)
        forward = [i for i, e in enumerate(trace.events) if e.phase == "forward" and e.step == 1]
        return max(bytes_of(trace, "activations", i) for i in forward)

    gpipe = [kept("gpipe", n) for n in (1, 2, 3, 4)]
    assert gpipe[3] - gpipe[2] == gpipe[2] - gpipe[1] == gpipe[1] - gpipe[0] > 0
    assert kept("1f1b", 2) == kept("1f1b", 4) == gpipe[1], "the first of two stages holds two micro-batches"


def test_any_step_function_can_be_traced_without_touching_its_module():
    from memfit.trace import trace

    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = [p.detach().clone() for p in model.parameters()]

    def step(model, optimizer, x):
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for engine in ("fake-cuda", "meta"):
        seen = trace(step, model, optimizer, torch.randn(32, 64), engine=engine, hidden=False)
        size = sum(p.numel() for p in model.parameters()) * 4
        assert bytes_of(seen, "optimizer", len(seen.events) - 1) == size
        assert bytes_of(seen, "parameters", len(seen.events) - 1) == size
        names = {b.module for b in seen.live(len(seen.events) - 1) if b.component == "optimizer"}
        assert names == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_a_value_that_is_not_there_is_assumed_and_told():
    from memfit.trace import run_meta

    def step(model):
        x = torch.empty(4, 8, device="meta")
        if (model(x).sum() > 0).item():
            torch.empty(1 << 20, device="meta")

    found = run_meta(lambda: torch.nn.Linear(8, 8, device="meta"), step)
    assert len(found.warnings) == 1
    assert "test_trace_engines.py" in found.warnings[0]
    assert found.peak_allocated < 1 << 20 or found.settings["hidden"]


def test_a_fused_norm_is_one_kernel_on_fake_cuda_and_a_warning_on_meta():
    from memfit.trace import run

    def step(model):
        model(next(model.parameters()).new_empty(64, 128)).sum().backward()

    made = {}
    for engine, device in (("fake-cuda", "cuda"), ("meta", "meta")):
        made[engine] = run(lambda device=device: torch.nn.RMSNorm(128, device=device), step, engine=engine)
    assert any("rms_norm" in b.op for b in made["fake-cuda"].blocks.values())
    assert not made["fake-cuda"].warnings
    assert "RMSNorm" in made["meta"].warnings[0]


def test_the_trace_leaves_torch_as_it_was():
    before = (torch.nn.functional.scaled_dot_product_attention, torch.cuda.Stream, torch.UntypedStorage.resize_)
    traced("fake-cuda")
    after = (torch.nn.functional.scaled_dot_product_attention, torch.cuda.Stream, torch.UntypedStorage.resize_)
    assert before == after
    weight = torch.ones(2, requires_grad=True)
    weight.sum().backward()
    assert weight.grad.tolist() == [1, 1], "real training goes on afterwards"
    assert not torch.cuda.is_available() or torch.version.cuda


def test_a_process_that_trained_before_is_told_why_it_cannot_use_fake_cuda():
    code = """
import torch
from memfit.trace import run_fake, trace
from memfit.trace.unlock import UnlockError
def step(model):
    model(next(model.parameters()).new_empty(4, 8)).sum().backward()
torch.ones(2, requires_grad=True).sum().backward()
try:
    run_fake(lambda: torch.nn.Linear(8, 8, device="cuda"), step)
except UnlockError as error:
    assert "fresh process" in str(error), error
else:
    raise SystemExit("it was not refused")
found = trace(step, torch.nn.Linear(8, 8))
assert found.engine == "meta" and "fresh process" in found.warnings[-1], found.warnings
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
