"""Serving speed: rooflines worked out by hand, and laws."""

from __future__ import annotations

import pytest

from memfit import MemfitError, estimate
from memfit.job import from_kwargs
from memfit.speed import latency, step_time

BASE = {"model": "llama-3.1-8b", "kind": "serve", "framework": "vllm", "gpu": "h100", "prompt": 1024, "output": 256}


def of(**fields):
    return latency(from_kwargs(**{**BASE, **fields}))


def test_a_single_sequence_reads_the_weights_once_a_token():
    # 7.5e9 weights outside the embedding in 16 bit over 3.35 TB/s * 0.89 are 5.0 ms
    found = of(concurrency=1)
    assert found.parts["matmul"] == pytest.approx(5.0e-3, rel=0.1)
    assert 5e-3 < found.tpot_s < 10e-3
    assert found.tokens_per_s_per_gpu == pytest.approx(1 / found.tpot_s)


def test_the_prompt_is_bound_by_its_products():
    # 2 * 7.5e9 * 8192 = 1.23e14 operations at about 500 TFLOPS, 2 * 4096 * 8192^2 * 32 = 1.8e13 of attention at 450
    found = of(prompt=8192, context=9000, concurrency=1)
    assert found.ttft_s == pytest.approx(0.246 + 0.040, rel=0.3)


def test_a_short_prompt_is_bound_by_the_host():
    short, longer = (of(prompt=n, concurrency=1).ttft_s for n in (16, 64))
    assert short == pytest.approx(longer, rel=0.02)
    assert of(prompt=16, concurrency=1, framework="llama.cpp").ttft_s < short / 2


def test_a_batch_that_starts_together_reads_its_prompts_together():
    one, eight = (of(framework="transformers", concurrency=n).ttft_s for n in (1, 8))
    assert 4 * one < eight < 8 * one


def test_a_busy_server_makes_a_request_wait_but_not_for_all_others():
    found = [of(concurrency=n) for n in (1, 8, 64)]
    times = [f.ttft_s for f in found]
    assert times == sorted(times)
    # hardly any queue where prompts are a small part of the work
    calm = of(concurrency=8, prompt=256, output=4096)
    assert calm.ttft_s < 1.3 * of(concurrency=1, prompt=256, output=4096).ttft_s
    # never longer than all the others' prompts
    assert times[-1] < 64 * times[0]


def test_parts_sum_to_the_time_of_a_token():
    for concurrency in (1, 16, 256):
        found = of(concurrency=concurrency)
        total = 0.0
        for value in found.parts.values():
            total += value
        assert total == found.tpot_s


def test_half_of_a_context_is_prompt_unless_the_job_says():
    """A context that is all prompt would have the prompts of all other requests between two tokens."""
    job = {"model": "llama-3.1-8b", "framework": "vllm", "gpu": "h100", "context": 32768, "concurrency": 16}
    halves, neither = (latency(from_kwargs(**job, **more)) for more in ({"prompt": 16384, "output": 16384}, {}))
    assert neither == halves
    assert neither.tpot_s < 0.1
    assert latency(from_kwargs(**job, prompt=32000)).tpot_s > neither.tpot_s


def test_more_at_once_is_slower_for_each_and_faster_in_all():
    found = [of(concurrency=n) for n in (1, 4, 16, 64)]
    assert [f.tpot_s for f in found] == sorted(f.tpot_s for f in found)
    assert [f.tokens_per_s_per_gpu for f in found] == sorted(f.tokens_per_s_per_gpu for f in found)


def test_smaller_weights_and_caches_are_faster():
    assert of(concurrency=1, weights="awq").parts["matmul"] < 0.5 * of(concurrency=1).parts["matmul"]
    long = {"context": 65536, "prompt": 60000, "output": 1000, "concurrency": 8}
    assert of(**long, kv="fp8").parts["attention"] < of(**long).parts["attention"]


def test_a_longer_prompt_takes_longer():
    times = [of(prompt=n, concurrency=1).ttft_s for n in (128, 1024, 8192, 65536)]
    assert times == sorted(times)


def test_tensor_parallelism_shortens_a_token_and_pays_for_collectives():
    one, four = of(concurrency=8), of(concurrency=8, gpu="4xh100", tp=4)
    assert four.tpot_s < one.tpot_s
    assert four.parts["tp"] > 0
    assert four.tokens_per_s_per_gpu < one.tokens_per_s_per_gpu


def test_experts_are_read_as_far_as_tokens_reach_them():
    moe = {**BASE, "model": "qwen3-30b-a3b"}
    few, many = (latency(from_kwargs(**{**moe, "concurrency": n})).parts["matmul"] for n in (1, 256))
    assert few < many / 4
    # all 30.5e9 weights once: 61 GB over 2.98 TB/s
    assert many == pytest.approx(61e9 / 2.98e12, rel=0.3)


def test_eager_code_is_bound_by_the_host():
    # transformers decodes 32 eager layers in 25 to 30 ms
    assert 0.02 < of(framework="transformers", concurrency=1).tpot_s < 0.04


def test_only_serving_jobs_with_a_card_have_a_latency():
    with pytest.raises(MemfitError, match="needs a GPU"):
        latency(from_kwargs(model="gpt2", kind="serve"))
    with pytest.raises(MemfitError, match="no latency"):
        latency(from_kwargs(model="gpt2", gpu="h100"))
    with pytest.raises(MemfitError, match="no training step"):
        step_time(from_kwargs(model="gpt2", kind="serve", gpu="h100"))


def test_an_encoder_makes_no_tokens():
    job = {"model": "bert-base-uncased", "kind": "serve", "gpu": "l4"}
    with pytest.raises(MemfitError, match="encoder"):
        latency(from_kwargs(**job))
    assert estimate(**job).step_s is None


def test_an_estimate_of_a_server_has_both():
    found = estimate(**BASE)
    document = found.to_dict(full=False)
    assert document["step_s"] == found.step_s == found.time.step_s
    assert document["time"]["ttft_s"] == found.time.ttft_s > 0
    assert sum(p["seconds"] for p in document["time"]["parts"]) == pytest.approx(found.step_s)
