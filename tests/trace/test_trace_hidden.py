import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import memfit.trace.hidden as hidden
from memfit.trace import Gpu, HiddenRules
from memfit.trace.hidden import num_splits, reduction_buffers, table

# Bytes that the CUDA build of torch 2.13.0 took inside a sum over rows, block sizes rounded to 512.
MEASURED_SUMS = {
    (4096, 4096, 132): 134_217_728 + 128,
    (16384, 4096, 132): 138_412_544,
    (16384, 4096, 108): 113_246_720,
}


@pytest.mark.parametrize(("rows", "width", "processors"), MEASURED_SUMS)
def test_a_sum_over_rows_takes_what_was_measured(rows, width, processors):
    buffers = reduction_buffers((rows, width), (width, 1), [0], 2, Gpu(multiprocessors=processors))
    measured = MEASURED_SUMS[rows, width, processors]
    assert sum(buffers) == measured or sum(-(-b // 512) * 512 for b in buffers) == measured


def test_a_reduction_of_rows_needs_no_buffers():
    assert reduction_buffers((1, 4096, 4096), (4096 * 4096, 4096, 1), [-1], 4, Gpu()) == []


@given(rows=st.integers(1, 1 << 15), width=st.sampled_from([1, 64, 768, 1000, 4096, 4097]))
def test_leading_dims_of_one_do_not_change_a_reduction(rows, width):
    plain = reduction_buffers((rows, width), (width, 1), [0], 2, Gpu())
    nested = reduction_buffers((1, rows, width), (rows * width, width, 1), [0, 1], 2, Gpu())
    assert plain == nested
    assert all(size > 0 for size in plain)


class Shaped:
    """A tensor's shape and element size, all that the formulas read."""

    def __init__(self, *shape, element=2):
        self.shape, self._element = shape, element
        self.device = type("Device", (), {"type": "meta"})

    def dim(self):
        return len(self.shape)

    def numel(self):
        return math.prod(self.shape)

    def element_size(self):
        return self._element

    def untyped_storage(self):
        raise AssertionError


def temporaries(op, args, out=None):
    sizes = HiddenRules.for_gpu(Gpu(), "2.13.0").temporaries(f"aten::{op}", args, {}, out, "meta")
    return sum(-(-size // 512) * 512 for size in sizes)


@pytest.mark.parametrize(("tokens", "measured"), [(4096, 74_011_136), (16384, 296_073_216), (2048, 0)])
def test_embedding_backward_takes_what_was_measured(tokens, measured):
    assert (
        temporaries("embedding_dense_backward", (Shaped(tokens, 4096), Shaped(tokens, element=8), 128256, -1, False))
        == measured
    )


def test_flash_backward_with_grouped_heads_takes_what_was_measured():
    q, k = Shaped(1, 32, 4096, 128), Shaped(1, 8, 4096, 128)
    assert (
        temporaries("_scaled_dot_product_flash_attention_backward", (Shaped(1, 32, 4096, 128), q, k, k)) == 134_742_016
    )


def test_flash_decoding_splits_the_keys_as_measured():
    q, k = Shaped(1, 32, 1, 128), Shaped(1, 32, 8192, 128)
    assert num_splits(32, 264, 64, 128) == 7
    assert temporaries("_scaled_dot_product_flash_attention", (q, k, k)) == 115_712
    assert temporaries("_scaled_dot_product_flash_attention", (Shaped(1, 32, 4096, 128),) * 3) == 0


def test_efficient_backward_and_foreach_norm_take_what_was_measured():
    q = Shaped(1, 16, 4096, 128)
    assert temporaries("_scaled_dot_product_efficient_attention_backward", (q, q, q, q)) == 33_824_768
    assert temporaries("_foreach_norm", ([Shaped(4096, 4096)] * 8,)) == 8192


@pytest.mark.parametrize(
    ("capability", "version", "first", "again"),
    [((9, 0), "2.13.0", 33_554_432, 0), ((8, 0), "2.13.0+cpu", 8_519_680, 0), ((9, 0), "2.15.0", 0, 0)],
)
def test_cublas_workspaces_follow_release_and_capability(capability, version, first, again):
    rules = HiddenRules.for_gpu(Gpu(capability=capability), version)
    args = (Shaped(8, 8), Shaped(8, 8))
    assert sum(rules.persistent("aten::mm", args, 0, False, "meta")) == first
    assert sum(rules.persistent("aten::addmm", args, 0, False, "meta")) == again
    assert sum(rules.persistent("aten::mm", args, 0, True, "meta")) == first, "the engine's thread has its own handle"
    assert sum(rules.persistent("aten::mm", args, 7, False, "meta")) == first, "each stream has its own"


def test_every_rule_names_its_source_basis_and_an_existing_formula():
    names = [rule["name"] for rule in table()]
    assert len(names) == len(set(names))
    for rule in table():
        assert rule["source"]
        assert rule["basis"] in ("source", "fitted", "point")
        assert rule["formula"] == "per_handle" or rule["formula"] in hidden._FORMULAS
        assert all(op.startswith("aten::") for op in rule["ops"])
    assert set(hidden._FORMULAS) - {rule["formula"] for rule in table()} <= {"per_call", "constant"}
    assert tomllib.loads(Path(hidden._TABLE).read_text("utf-8"))["date"]
