"""The data files of the time model: every row is used, sourced, and within reason."""

from __future__ import annotations

from dataclasses import fields

import pytest

from memfit.formula import profile as profiles
from memfit.hardware import default_node, gpus
from memfit.job.fields import BY_NAME
from memfit.speed.calibration import default
from memfit.speed.data import read
from memfit.speed.framework import Framework, framework
from memfit.speed.network import fabric
from memfit.speed.rates import rates

KERNELS = ("flash2", "flash3", "efficient")


def test_framework_rows_have_known_fields_and_sources():
    known = {f.name for f in fields(Framework)} | {"of", "match"}
    variants = {name for name, row in profiles._profiles()["profile"].items() if "of" in row}
    for name, row in read("frameworks").items():
        if name == "meta":
            continue
        assert set(row) <= known, name
        assert row["source"]
        assert name == "default" or "of" in row or name in {*profiles.names(), *variants}


def test_every_framework_has_rows():
    for name in profiles.names():
        row = framework(name)
        assert row.attention in KERNELS
        assert row.ddp in ("overlap", "after")
        assert 0 <= row.tp_forward <= 1


def test_rows_follow_versions_and_ancestors():
    assert framework("megatron", "NeMo/Megatron-Core").tp_forward > framework("megatron").tp_forward
    assert framework("nanotron").bucket_bytes != framework("megatron").bucket_bytes
    assert framework("nanotron").fused_softmax == framework("megatron").fused_softmax


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_card_sustains_something_below_its_peak(kernel):
    for gpu in gpus():
        for precision in BY_NAME["precision"].choices:
            r = rates(gpu, precision, kernel, default())
            assert r.attention > 0
            assert r.matmul <= r.low
            assert 0 < r.stream <= r.read <= gpu.memory_bytes_per_s
        peak = gpu.peak_flops("bf16")
        assert 0 < rates(gpu, "bf16", kernel, default()).matmul <= peak


def test_every_card_has_a_fabric():
    for gpu in gpus():
        f = fabric(gpu, None, default())
        assert f.local > 0
        assert f.all_reduce(f.group(default_node(gpu).num_gpus * 4, 1), 1e6) > 0


def test_architectures_of_the_tables_exist():
    known = {gpu.architecture for gpu in gpus()}
    table = read("rates")
    assert set(table["architecture"]) - {"other"} <= known
    assert set(table["desktop"]) <= known
    assert set(table["card"]) <= {gpu.name for gpu in gpus()}


def test_engines_are_engines():
    serve = {*BY_NAME["framework"].choices}
    assert set(read("engines")) - {"meta", "default"} <= serve
