"""The accelerator data: complete, sourced, and plausible against each other."""

import copy
import dataclasses
import json
import pickle
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from memfit.hardware import Gpu, data_version, gpus, lookup_gpu
from memfit.hardware.data import GPU_FILES, read
from memfit.units import GIB, MIB

DATE = re.compile(r"\((19|20)\d\d(-\d\d(-\d\d)?)?\)$")
DTYPES = {"fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp4"}


def each_gpu(test):
    """Run a test on every card; a failure names the card."""

    def run():
        for gpu in gpus():
            try:
                test(gpu)
            except Exception as error:
                error.add_note(f"card: {gpu.name}")
                raise

    return run


def card(name: str) -> Gpu:
    found, count = lookup_gpu(name)
    assert count is None
    return found


def test_there_are_many_cards_of_every_kind():
    kinds = Counter(g.kind for g in gpus())
    assert len(gpus()) >= 150
    assert kinds["datacenter"] >= 45
    assert kinds["consumer"] >= 45
    assert kinds["workstation"] >= 20
    assert kinds["laptop"] >= 10
    assert {g.vendor for g in gpus()} == {"nvidia", "amd", "intel", "apple"}


def test_names_are_unique():
    assert [n for n, c in Counter(g.name for g in gpus()).items() if c > 1] == []
    aliases = [a for g in gpus() for a in g.aliases]
    assert [a for a, c in Counter(aliases).items() if c > 1] == []
    assert not set(aliases) & {g.name for g in gpus()}


@each_gpu
def test_every_figure_has_a_source_with_a_date(gpu):
    assert set(gpu.sources) == {"specs", "flops", "total", "context"}
    for what, text in gpu.sources.items():
        assert len(text) > 15, what
        assert DATE.search(text), (what, text)
    assert gpu.total_origin in {"measured", "derived", "assumed"}
    assert gpu.context_origin in {"measured", "derived", "assumed"}
    assert gpu.sources["total"].startswith("assumed") <= (gpu.total_origin == "assumed")


def test_no_source_is_left_over():
    used = {key for name in GPU_FILES for row in read(name) for key in row["sources"].values()}
    assert used == set(read("sources"))


@each_gpu
def test_total_is_a_little_below_what_is_sold(gpu):
    sold = gpu.nominal_gb * GIB
    assert gpu.total_bytes < sold
    if gpu.unified:  # the system keeps a part: a third of a Mac's, a quarter of Strix Halo's
        assert gpu.total_bytes >= 0.66 * sold
    elif gpu.ecc.startswith("inline, on"):
        assert 0.91 * sold < gpu.total_bytes <= 15 / 16 * sold
    else:
        assert gpu.total_bytes > 0.92 * sold


@each_gpu
def test_context_is_small_and_positive(gpu):
    assert 100 * MIB < gpu.context_bytes < 1 * GIB
    assert gpu.usable_bytes == gpu.total_bytes - gpu.context_bytes
    assert gpu.usable_bytes > 0.88 * gpu.total_bytes


@each_gpu
def test_rates_are_ordered_by_width(gpu):
    assert set(gpu.flops) <= DTYPES
    f = gpu.flops
    assert f["fp32"] >= 5e11
    for wide, narrow in (("fp32", "tf32"), ("tf32", "bf16"), ("bf16", "fp8"), ("fp8", "fp4")):
        if wide in f and narrow in f:
            assert f[narrow] >= f[wide], (wide, narrow)
    if "fp8" in f:
        assert f["fp8"] == pytest.approx(2 * f["bf16"], rel=0.02)
    if "bf16" in f:
        assert "fp16" in f


@each_gpu
def test_rates_fit_each_other(gpu):
    assert 60e9 <= gpu.memory_bytes_per_s <= 10e12
    best = max(gpu.flops.get("fp16", 0), gpu.flops["fp32"])
    assert 10 <= best / gpu.memory_bytes_per_s <= 700, "FLOP per byte"
    assert gpu.link_bytes_per_s < gpu.memory_bytes_per_s
    assert bool(gpu.link) == (gpu.link_bytes_per_s > 0)
    assert gpu.pcie_bytes_per_s < gpu.memory_bytes_per_s
    assert gpu.host_bytes_per_s >= gpu.pcie_bytes_per_s


@each_gpu
def test_memory_kind_and_bandwidth_agree(gpu):
    if gpu.memory_type.startswith("hbm"):
        assert gpu.memory_bytes_per_s >= 700e9
    elif gpu.memory_type.startswith("gddr"):
        assert 150e9 <= gpu.memory_bytes_per_s < 1.9e12
    if gpu.vendor == "apple":
        assert gpu.unified
        assert gpu.memory_type.startswith("lpddr")


@each_gpu
def test_vendor_facts_are_present(gpu):
    assert (gpu.compute_capability is not None) == (gpu.vendor == "nvidia")
    assert (gpu.gfx is not None) == (gpu.vendor == "amd")
    assert gpu.sm_count > 0
    assert 2016 <= gpu.year <= 2026
    if gpu.compute_capability is not None:
        assert ("bf16" in gpu.flops) == (gpu.compute_capability >= (8, 0))
        assert ("fp8" in gpu.flops) == (gpu.compute_capability >= (8, 9))
        assert ("fp4" in gpu.flops) == (gpu.compute_capability >= (10, 0))
    if gpu.kind in {"consumer", "laptop"} and (gpu.compute_capability or (0,)) >= (7, 5):
        assert not gpu.p2p


# Totals in GiB that public logs and runs showed, low and high.
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("t4", 14.56, 14.75),
        ("l4", 22.0, 22.17),
        ("a10g", 21.9, 22.4),
        ("v100-16gb", 15.75, 15.79),
        ("a100-40gb", 39.38, 39.6),
        ("a100-80gb", 79.1, 79.35),
        ("h100", 79.1, 79.25),
        ("h100-96gb", 94.9, 95.1),
        ("h20", 94.9, 95.1),
        ("h200", 139.7, 140.4),
        ("b300", 267.6, 267.8),
        ("gb10", 119.0, 122.0),
        ("rtx-3090", 23.5, 23.7),
        ("rtx-4090", 23.5, 23.66),
        ("rtx-5090", 31.3, 31.45),
        ("rtx-2080-ti", 10.7, 10.8),
        ("rtx-a6000", 47.35, 47.55),
        ("l40s", 44.3, 44.55),
        ("mi355x", 287.9, 288.0),
        ("mi300x", 191.4, 192.0),
    ],
)
def test_known_totals(name, low, high):
    assert low <= card(name).total_bytes / GIB <= high


@pytest.mark.parametrize(
    ("name", "bf16", "bandwidth", "link"),
    [
        ("a100", 312e12, 2.04e12, 300e9),
        ("h100", 989e12, 3.35e12, 450e9),
        ("h200", 989e12, 4.8e12, 450e9),
        ("b200", 2250e12, 7.7e12, 900e9),
        ("gb200", 2500e12, 8e12, 900e9),
        ("h20", 148e12, 4.0e12, 450e9),
        ("a800", 312e12, 2.04e12, 200e9),
        ("l40s", 362e12, 0.864e12, 0),
        ("rtx-4090", 165.2e12, 1.008e12, 0),
        ("rtx-3090", 71.2e12, 0.936e12, 0),
        ("rtx-5090", 209.5e12, 1.792e12, 0),
        ("rtx-a6000", 154.8e12, 0.768e12, 0),
        ("mi300x", 1307e12, 5.3e12, 448e9),
    ],
)
def test_known_rates(name, bf16, bandwidth, link):
    gpu = card(name)
    assert gpu.flops["bf16"] == pytest.approx(bf16, rel=0.005)
    assert gpu.memory_bytes_per_s == pytest.approx(bandwidth, rel=0.005)
    assert gpu.link_bytes_per_s == link


def test_newer_data_centre_cards_have_more_of_everything():
    line = [card(n) for n in ("v100-sxm-16gb", "a100", "h100", "h200", "b200", "b300")]
    for before, after in pairwise(line):
        assert after.total_bytes > 0.99 * before.total_bytes  # an H100 shows 0.04 GiB less than an A100
        assert after.memory_bytes_per_s > before.memory_bytes_per_s
        assert after.peak_flops("fp16") >= before.peak_flops("fp16")
        assert after.link_bytes_per_s >= before.link_bytes_per_s


def test_a_missing_dtype_runs_on_the_next_one():
    assert card("h100").peak_flops("fp4") == card("h100").flops["fp8"]
    assert card("a100").peak_flops("fp8") == card("a100").flops["bf16"]
    assert card("v100").peak_flops("bf16") == card("v100").flops["fp32"]
    assert card("v100").peak_flops("fp8") == card("v100").flops["fp16"]
    assert card("p100").peak_flops("tf32") == card("p100").flops["fp32"]
    assert card("b200").peak_flops("nvfp4") == card("b200").flops["fp4"]
    assert card("h100").supports("fp8")
    assert not card("a100").supports("fp8")
    with pytest.raises(ValueError, match="fp3"):
        card("h100").peak_flops("fp3")


@each_gpu
def test_every_dtype_has_a_rate_on_every_card(gpu):
    for dtype in DTYPES | {"int4", "mxfp8", "mxfp4", "nvfp4"}:
        assert gpu.peak_flops(dtype) > 0


def test_macs_follow_the_working_set_rule():
    assert card("m2-16gb").total_bytes == 16 * GIB * 2 // 3
    assert card("m3-max-36gb").total_bytes == 24 * GIB
    assert card("m3-max-64gb").total_bytes == 48 * GIB
    assert "approximation" in card("m1-8gb").sources["total"]


def test_grace_cards_reach_the_host_faster_than_pcie():
    assert card("gh200").host_bytes_per_s == 450e9
    assert card("h100").host_bytes_per_s == pytest.approx(63.0e9, rel=0.001)


def test_the_users_total_replaces_the_catalog():
    gpu = card("h100").with_total_bytes(int(79.6 * GIB))
    assert gpu.total_bytes == int(79.6 * GIB)
    assert gpu.total_origin == "given"
    assert "user" in gpu.sources["total"]
    assert gpu.sources["specs"] == card("h100").sources["specs"]
    assert card("h100").total_origin == "measured"


def test_a_card_copies_pickles_hashes_and_prints_as_json():
    gpu = card("h100")
    assert pickle.loads(pickle.dumps(gpu)) == copy.deepcopy(gpu) == gpu
    assert dataclasses.asdict(gpu)["name"] == gpu.name
    assert len({hash(g) for g in gpus()}) == len(gpus())
    shown = json.loads(json.dumps(gpu.to_dict()))
    assert shown["total_gib"] == pytest.approx(79.11, abs=0.01)
    assert shown["compute_capability"] == [9, 0]


def test_data_version_names_date_and_content():
    assert re.fullmatch(r"20\d\d-\d\d-\d\d\+[0-9a-f]{8}", data_version())
    assert data_version() == data_version()


def test_the_package_loads_no_heavy_library():
    code = (
        "import sys, memfit.hardware as h; h.lookup_gpu('8xh100'); h.data_version();"
        "print([m for m in ('numpy', 'torch', 'yaml', 'rich', 'click') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
