"""What must hold for step times whatever the figures are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.job import from_kwargs
from memfit.speed import step_time
from memfit.speed.calibration import NAMES, constant, default
from strategies import jobs

BASE = {"model": "llama-3.2-1b", "gpu": "h100", "framework": "megatron", "seq_len": 2048}
CARDS = st.sampled_from(("h100", "a100-80gb", "rtx-4090"))


def seconds(calibration=None, **fields):
    return step_time(from_kwargs(**fields), calibration=calibration).step_s


def parts(**fields):
    return step_time(from_kwargs(**fields)).parts


@settings(max_examples=40)
@given(jobs(gpu=CARDS, cp=1, method=st.sampled_from(("full", "lora"))), st.sampled_from(("micro_batch", "seq_len")))
def test_more_work_takes_longer(job, field):
    assert seconds(**job) <= seconds(**{**job, field: job[field] * 2}) * (1 + 1e-9)


def test_more_layers_take_longer():
    from memfit.models import catalog

    config = catalog.lookup("llama-3.2-1b").config
    times = [seconds(**{**BASE, "model": {**config, "num_hidden_layers": n}}) for n in (4, 8, 16, 17)]
    assert times == sorted(times)
    assert times[1] - times[0] == pytest.approx((times[2] - times[1]) / 2, rel=0.05)


@settings(max_examples=40)
@given(jobs(gpu=CARDS), st.sampled_from(("matmul", "attention", "memory", "link", "network")))
def test_faster_parts_never_make_a_step_slower(job, name):
    faster = replace(default(), **{name: getattr(default(), name) * 1.25})
    assert seconds(faster, **job) <= seconds(**job) * (1 + 1e-9)


@settings(max_examples=30)
@given(
    jobs(gpu=CARDS),
    st.sampled_from(("kernel_s", "host_s", "hop_s", "network_hop_s", "contention", "interference", "jitter")),
)
def test_larger_costs_never_make_a_step_faster(job, name):
    slower = replace(default(), **{name: getattr(default(), name) * 1.25})
    assert seconds(slower, **job) >= seconds(**job) * (1 - 1e-9)


def test_the_bubble_shrinks_with_accumulation():
    shares = []
    for micro in (4, 8, 16, 64):
        found = parts(**BASE, pp=4, grad_accum=micro)
        shares.append(found["bubble"] / sum(found.values()))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.2
    assert shares[-1] < 0.1


def test_schedules_order_by_their_bubbles():
    bubble = {
        s: parts(**BASE, pp=4, grad_accum=8, pp_schedule=s)["bubble"]
        for s in ("gpipe", "1f1b", "interleaved", "zero-bubble")
    }
    assert bubble["gpipe"] == bubble["1f1b"]
    assert bubble["interleaved"] < bubble["1f1b"]
    assert bubble["zero-bubble"] < bubble["1f1b"]


def test_the_longest_stage_sets_the_pace():
    """The step of an unequal split is that of its slowest rank, and the head counts as layers there."""
    base = {"model": "llama-3.1-8b", "gpu": "4xh100", "framework": "megatron", "seq_len": 4096, "grad_accum": 64}

    def seconds(*layers):
        return step_time(from_kwargs(**base, pp_layers=layers)).step_s

    longer = [seconds(8, 24 - n, n, 0) for n in range(12, 25)]
    assert longer == sorted(longer)
    assert seconds(8, 8, 8, 8) > seconds(8, 9, 8, 7) > seconds(8, 9, 9, 6)
    assert seconds(8, 8, 8, 8) == pytest.approx(step_time(from_kwargs(**base, pp=4)).step_s, rel=1e-12)


def test_recomputation_costs_by_its_extent():
    extra = {c: parts(**BASE, checkpointing=c)["recompute"] for c in ("none", "attention", "selective", "full")}
    assert extra["none"] == 0
    assert 0 < extra["attention"] < extra["selective"] < extra["full"]
    assert seconds(**BASE, checkpointing=2) == pytest.approx(
        (seconds(**BASE, checkpointing="full") + seconds(**BASE, checkpointing="none")) / 2, rel=0.02
    )


def test_a_compiler_saves_traffic_and_host_time():
    eager = {"model": "llama-3.2-1b", "gpu": "h100", "framework": "torch", "seq_len": 2048}
    assert parts(**eager, compile=True)["memory"] < parts(**eager)["memory"]
    small = {**eager, "seq_len": 128}
    assert parts(**small)["host"] > parts(**small, compile=True)["host"]


def test_tensor_parallelism_is_dear_without_a_fast_link():
    shape = {"model": "llama-3.1-8b", "framework": "megatron", "seq_len": 2048, "tp": 4, "micro_batch": 4}
    share = {}
    for gpu in ("4xh100", "4xl40s", "4xrtx-4090"):
        found = parts(**shape, gpu=gpu)
        share[gpu] = found["tp"] / sum(found.values())
    assert share["4xh100"] < 0.25 < share["4xl40s"] < share["4xrtx-4090"]


def test_tensor_parallelism_across_nodes_is_slower_than_inside():
    inside = {**BASE, "model": "llama-3.1-8b", "micro_batch": 4}
    assert parts(**inside, tp=16, gpus_per_node=16)["tp"] < parts(**inside, tp=16, gpus_per_node=8)["tp"]


def test_gathering_weights_twice_costs_more_and_sharding_shortens_the_optimizer():
    base = {"model": "llama-3.1-8b", "gpu": "16xh100", "framework": "torch", "dp": 16, "micro_batch": 1, "seq_len": 512}
    assert parts(**base, zero=3, reshard=False)["dp"] < parts(**base, zero=3)["dp"]
    assert parts(**base, zero=3)["optimizer"] < parts(**base, zero=0)["optimizer"]


def test_a_sharded_pipeline_gathers_again_after_each_forward_pass_that_reshards():
    # torch.distributed.pipelining over FSDP2, counted on 2 x 2 processes: 1 gather of each unit, or 1 + micro-batches
    base = {"model": "llama-3.1-8b", "framework": "torchtitan", "gpu": "16xa100", "dp": 4, "tp": 2, "pp": 2, "zero": 3}
    for schedule in ({"pp_schedule": "1f1b"}, {"pp_schedule": "interleaved", "virtual_pp": 2}):
        few, many = ({**base, **schedule, "grad_accum": n} for n in (8, 16))
        kept = [parts(**fields, reshard=False)["dp"] for fields in (few, many)]
        again = [parts(**fields, reshard=True)["dp"] for fields in (few, many)]
        assert kept[0] == pytest.approx(kept[1])
        assert again[0] > kept[0]
        assert again[1] - kept[1] == pytest.approx(2 * (again[0] - kept[0]))
        assert parts(**few)["dp"] == kept[0]  # torchtitan leaves resharding off in a pipeline


def test_offloading_costs_the_host_interface_and_the_hosts_memory():
    base = {"model": "llama-3.2-1b", "gpu": "rtx-4090", "framework": "deepspeed", "seq_len": 1024, "zero": 3}
    plain, states = parts(**base), parts(**base, offload=("optimizer",))
    assert plain["offload"] == 0
    assert states["offload"] > 10 * plain["optimizer"]
    # gradients go down over 25 GB/s of PCIe 4, weights come back: 4 bytes of each parameter at least
    assert states["offload"] > 1.2e9 * 2 / 31.5e9


def test_adapters_skip_the_weight_gradients():
    base = {"model": "llama-3.1-8b", "gpu": "h100", "framework": "torch", "seq_len": 2048, "micro_batch": 2}
    full, lora = parts(**base, precision="bf16"), parts(**base, method="lora", precision="bf16")
    assert lora["matmul"] == pytest.approx(full["matmul"] * 2 / 3, rel=0.12)
    assert lora["optimizer"] < full["optimizer"] / 10


def test_figures_have_bounds_and_sources():
    for name in NAMES:
        row = constant(name)
        assert row["low"] <= row["value"] <= row["high"]
        assert row["doc"]
        assert row["source"]
    assert len(NAMES) <= 12


@pytest.mark.parametrize(
    ("framework", "loss", "passes"),
    [("torchtitan", "compiled", 3), ("torchtitan", "chunked", 3), ("trl", "chunked", 4), ("trl", "fused", 3)],
)
def test_every_loss_has_the_products_of_the_head(framework, loss, passes):
    def products(vocab):
        config = {
            "model_type": "llama", "vocab_size": vocab, "hidden_size": 2048, "intermediate_size": 8192,
            "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 16,
        }  # fmt: skip
        job = from_kwargs(config=config, gpu="8xh100", framework=framework, loss=loss, seq_len=8192, zero=3)
        return step_time(job).parts["matmul"]

    # of a large product: 2 * tokens * hidden * vocabulary operations each, at about the card's sustained rate
    more = products(256 * 1024) - products(128 * 1024)
    ideal = passes * 2 * 8192 * 2048 * 128 * 1024 / 989e12
    assert 1.2 < more / ideal < 2.2
