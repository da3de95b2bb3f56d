"""What people type for a GPU, right and wrong."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.errors import MemfitError, UnknownNameError
from memfit.hardware import Gpu, gpus, lookup_gpu


def test_every_name_title_and_alias_finds_its_card():
    for gpu in gpus():
        for text in (gpu.name, gpu.title, gpu.title.upper(), gpu.name.replace("-", " "), *gpu.aliases):
            assert lookup_gpu(text) == (gpu, None), text


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("h100", "h100-sxm-80gb", None),
        ("8xh100", "h100-sxm-80gb", 8),
        ("h100x8", "h100-sxm-80gb", 8),
        ("8 x H100", "h100-sxm-80gb", 8),
        ("8×h100", "h100-sxm-80gb", 8),
        ("8 * h100", "h100-sxm-80gb", 8),
        ("h100:8", "h100-sxm-80gb", 8),
        ("H100 x 16", "h100-sxm-80gb", 16),
        ("16 h100", "h100-sxm-80gb", 16),
        ("rtx-4090", "rtx-4090", None),
        ("rtx4090", "rtx-4090", None),
        ("rtx_4090", "rtx-4090", None),
        ("4090", "rtx-4090", None),
        ("2x4090", "rtx-4090", 2),
        ("4090x2", "rtx-4090", 2),
        ("4x RTX 4090", "rtx-4090", 4),
        ("RTX 4090", "rtx-4090", None),
        ("rtx 4090 24gb", "rtx-4090", None),
        ("a100", "a100-sxm-80gb", None),
        ("a100-40gb", "a100-sxm-40gb", None),
        ("a100 40 GB", "a100-sxm-40gb", None),
        ("a100-80gb-sxm", "a100-sxm-80gb", None),
        ("a100-pcie", "a100-pcie-80gb", None),
        ("v100", "v100-sxm-16gb", None),
        ("v100-32g", "v100-sxm-32gb", None),
        ("h100nvl", "h100-nvl", None),
        ("mi300x", "mi300x", None),
        ("8xmi300x", "mi300x", 8),
        ("mi300xx8", "mi300x", 8),
        ("7900xtx", "rx-7900-xtx", None),
        ("3060", "rtx-3060-12gb", None),
        ("3080 12gb", "rtx-3080-12gb", None),
        ("4060ti-16gb", "rtx-4060-ti-16gb", None),
        ("4070tisuper", "rtx-4070-ti-super", None),
        ("4080s", "rtx-4080-super", None),
        ("rtx 4080 mobile", "rtx-4080-laptop", None),
        ("a6000", "rtx-a6000", None),
        ("rtxa6000", "rtx-a6000", None),
        ("rtx-8000", "quadro-rtx-8000", None),
        ("6000 ada", "rtx-6000-ada", None),
        ("pro 6000 blackwell", "rtx-pro-6000", None),
        ("m3-max-64gb", "m3-max-64gb", None),
        ("m3max 64gb", "m3-max-64gb", None),
        ("strix-halo", "radeon-8060s", None),
    ],
)
def test_shorthands(text, name, count):
    gpu, found = lookup_gpu(text)
    assert (gpu.name, found) == (name, count)


# What torch.cuda.get_device_name prints.
@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("Tesla T4", "t4"),
        ("Tesla P100-PCIE-16GB", "p100-pcie-16gb"),
        ("Tesla V100-SXM2-16GB", "v100-sxm-16gb"),
        ("Tesla V100-SXM2-32GB", "v100-sxm-32gb"),
        ("Tesla V100-PCIE-32GB", "v100-pcie-32gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm-40gb"),
        ("A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA H20", "h20"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),
        ("NVIDIA B200", "b200-sxm"),
        ("NVIDIA GB10", "gb10"),
        ("NVIDIA TITAN RTX", "titan-rtx"),
        ("Quadro RTX 8000", "quadro-rtx-8000"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000-server"),
        ("NVIDIA GeForce GTX 1080 Ti", "gtx-1080-ti"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx-4090-laptop"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "rtx-4070-ti-super"),
        ("AMD Instinct MI300X", "mi300x"),
        ("AMD Radeon RX 7900 XTX", "rx-7900-xtx"),
    ],
)
def test_device_names(device, name):
    assert lookup_gpu(device)[0].name == name


# The GPU names of published measurements that accuracy is judged on.
PUBLISHED = """
h100-sxm-80gb a100-sxm a100-sxm-80gb b200-sxm a100-80gb gb200 a10g rtx-4090 h200-sxm a800-80gb l40s h100
rtx-5090 h100-80gb v100-sxm-32gb h100-96gb rtx-3090 radeon-8060s t4 mi300x b200 a100 rtx-4070-ti-super h20
rtx-3090-ti rtx-a6000 gb10 arc-a770 v100-16gb rtx-6000-ada rtx-4090-d rtx-4080 rtx-pro-6000 a100-sxm-40gb l4
h200 b300
"""


@pytest.mark.parametrize("text", PUBLISHED.split())
def test_names_in_published_runs(text):
    gpu, count = lookup_gpu(text)
    assert isinstance(gpu, Gpu)
    assert count is None
    size = text.rpartition("-")[2]
    if size.endswith("gb"):
        assert f"{gpu.nominal_gb}gb" == size


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("h10", "h100"),
        ("h1000", "h100"),
        ("rtx-4900", "rtx-4090"),
        ("4099", "4090"),
        ("8xh10", "h100"),
        ("rtx-5090-ti", "rtx-5070-ti"),
        ("mi300y", "mi300x"),
        ("h100-64gb", "h100-96gb"),
    ],
)
def test_a_typo_gets_the_nearest_names(text, nearest):
    with pytest.raises(UnknownNameError) as caught:
        lookup_gpu(text)
    assert nearest in caught.value.nearest
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "one_of"),
    [
        ("m3-max", "m3-max-64gb"),
        ("apple m4", "m4-16gb"),
        ("rtx 6000", "rtx-6000-ada"),
        ("8x rtx 5000", "rtx-5000-ada"),
    ],
)
def test_a_name_of_several_cards_lists_them(text, one_of):
    with pytest.raises(UnknownNameError) as caught:
        lookup_gpu(text)
    assert one_of in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x",
        "8x",
        "x8",
        "8",
        "nvidia",
        "rtx",
        "gpu",
        "xh100",
        "-8xh100",
        "8.5xh100",
        "h100,a100",
        "h100 b200",
        "tpu-v5e",
        "h100-12gb",
        "rtx 4090 hbm3",
        "\x00",
        "ｈ１００",
        "🂡",
        "x" * 10_000,
        "9" * 500,
        "8x" * 200,
    ],
)
def test_malformed_names_are_one_clear_error(text):
    with pytest.raises(UnknownNameError) as caught:
        lookup_gpu(text)
    assert "GPU" in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.hint


@pytest.mark.parametrize("text", ["0xh100", "h100x0", "999999999xh100", "1000001 x h100"])
def test_a_count_out_of_bounds_says_so(text):
    with pytest.raises(MemfitError, match="between 1 and"):
        lookup_gpu(text)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=string.ascii_lowercase + string.digits + " -x*:×", max_size=30))
def test_any_text_gives_a_card_or_an_error(text):
    try:
        gpu, count = lookup_gpu(text)
    except MemfitError:
        return  # any other exception fails the test
    assert gpu in gpus()
    assert count is None or count >= 1


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(gpus()), st.integers(1, 4096), st.sampled_from(["{n}x{g}", "{n} x {g}", "{g} x {n}", "{n}×{g}"]))
def test_a_count_goes_with_every_name(gpu, count, form):
    assert lookup_gpu(form.format(n=count, g=gpu.name)) == (gpu, count)
