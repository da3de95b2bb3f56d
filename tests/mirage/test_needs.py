"""Which function belongs to which CUDA library, and how it answers."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from test_elf import compile_library, needs_gcc

from memfit.mirage.build import NATIVE
from memfit.mirage.generate import function_source, version_script
from memfit.mirage.needs import families, found_elsewhere, needed_libraries, owner, rule_for, rules


@pytest.mark.parametrize(
    ("function", "stem"),
    [
        ("cudaMalloc", "libcudart"),
        ("__cudaRegisterFunction", "libcudart"),
        ("cuMemCreate", "libcuda"),
        ("cublasGemmEx", "libcublas"),
        ("cublasLtMatmul", "libcublasLt"),
        ("cusparseSpMM", "libcusparse"),
        ("cusparseLtInit", "libcusparseLt"),
        ("cuFileRead", "libcufile"),
        ("nvshmem_init", "libnvshmem_host"),
        ("ncclAllReduce", "libnccl"),
        ("nvmlInit_v2", "libnvidia-ml"),
    ],
)
def test_a_function_belongs_to_the_family_with_the_longest_prefix(function, stem):
    assert owner(function).stem == stem


@pytest.mark.parametrize("function", ["malloc", "cutlass_gemm", "cudagraph", "custom", "customer_id", "PyList_New"])
def test_other_names_belong_to_nobody(function):
    assert owner(function) is None


def test_every_hand_written_source_exists_and_is_used():
    named = [source for family in families() for source in family.sources]
    assert not [name for name, count in Counter(named).items() if count > 1]
    assert {path.name for path in NATIVE.glob("*.c")} == {*named, "core.c", "stream.c"}


def test_no_function_is_written_twice():
    found = Counter()
    for path in NATIVE.glob("*.c"):
        text = re.sub(r"#if CUDA_MAJOR < 13(.*?)#else(.*?)#endif", r"\1", path.read_text(), flags=re.DOTALL)
        found.update(re.findall(r"^EXPORT [\w\s*]*?\*?(\w+)\(", text, flags=re.MULTILINE))
    assert not [name for name, count in found.items() if count > 1]
    assert len(found) > 250


def test_no_vendor_header_is_included():
    for path in NATIVE.iterdir():
        for header in re.findall(r"#\s*include\s*[<\"]([^>\"]+)", path.read_text()):
            vendor = re.match(r"cu|nv|nccl|driver_types|vector_types", header)
            assert (NATIVE / header).exists() or not vendor, path.name


def test_rules_are_well_formed():
    for rule in rules():
        assert rule.bits in (32, 64)
        assert all(1 <= argument <= 20 for argument in rule.sets)
        assert all(value in ("handle", "text") or isinstance(value, int) for value in rule.sets.values())
        assert rule.text is not None or "text" not in rule.sets.values()


def test_the_first_matching_rule_answers():
    assert rule_for("cusolverDnSpotrf_bufferSize").sets == {6: 0}
    assert rule_for("cudnnCreateTensorDescriptor").sets == {1: "handle"}
    assert rule_for("cublasGetStatusString").text
    assert rule_for("cuptiActivityEnable").returns == 15
    assert rule_for("cublasGemmEx") is None


def test_generated_functions():
    gemm = function_source("cublasGemmEx", None, kernels=True)
    assert "WEAK long cublasGemmEx(void)" in gemm
    assert "mirage_work();" in gemm
    assert "mirage_work" not in function_source("cublasSetStream_v2", rule_for("cublasSetStream_v2"), kernels=True)
    workspace = function_source("cusolverDnSpotrf_bufferSize", rule_for("cusolverDnSpotrf_bufferSize"), kernels=True)
    assert "*(uint32_t *)a6 = (uint32_t)0" in workspace
    assert "(void)a5;" in workspace
    text = function_source("cuptiGetResultString", rule_for("cuptiGetResultString"), kernels=False)
    assert text.startswith("WEAK long")
    assert '*(uint64_t *)a2 = (uint64_t)(uintptr_t)"the imaginary' in text


def test_version_scripts():
    assert version_script([("one", ""), ("two", "")]) is None
    assert version_script([("one", "lib.so.1"), ("two", "")]) == "lib.so.1 { global: *; };\n"
    two = version_script([("a", "V1"), ("b", "V1"), ("c", "V2")])
    assert two == "V1 { global: *; };\nV2 { global: c; };\n"


@needs_gcc
def test_needs_of_a_library_like_torchs(tmp_path):
    (tmp_path / "map").write_text("libcudart.so.13 { global: *; };\n")
    runtime = compile_library(
        tmp_path,
        "runtime",
        "int cudaMalloc(void){return 0;}",
        "-Wl,-soname,libcudart.so.13",
        f"-Wl,--version-script={tmp_path / 'map'}",
    )
    nccl = compile_library(tmp_path, "nccl", "int ncclSend(void){return 0;}", "-Wl,-soname,libnccl.so.2")
    kernels = compile_library(tmp_path, "kernels", "int cuHelper(void){return 0;}", "-Wl,-soname,libkernels.so")
    torch = compile_library(
        tmp_path,
        "torch",
        "int cudaMalloc(void), ncclSend(void), cuHelper(void), cuMemCreate(void);"
        "int f(void){return cudaMalloc() + ncclSend() + cuHelper() + cuMemCreate();}",
        str(runtime),
        str(nccl),
        str(kernels),
        "-Wl,--allow-shlib-undefined",
    )
    found = {library.soname: library for library in needed_libraries([torch, kernels])}
    assert set(found) == {"libcudart.so.13", "libnccl.so.2", "libcuda.so.1", "libnvidia-ml.so.1"}
    assert found["libcudart.so.13"].functions == {"cudaMalloc": "libcudart.so.13"}
    assert found["libnccl.so.2"].functions == {"ncclSend": ""}
    driver = found["libcuda.so.1"].functions
    assert "cuMemCreate" in driver
    assert "cuTensorMapEncodeTiled" in driver  # nobody is linked to it, yet
    assert "cuHelper" not in driver  # one of the program's own


@needs_gcc
def test_the_vendors_libraries_on_the_search_path_are_noticed(tmp_path):
    (tmp_path / "lib").mkdir()
    library = compile_library(tmp_path / "lib", "torch", "int f(void){return 0;}", "-Wl,-rpath,$ORIGIN/../vendor")
    assert not found_elsewhere([library], ["libcudart.so.13"])
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "libcudart.so.13").touch()
    assert found_elsewhere([library], ["libcudart.so.13"])
    assert not found_elsewhere([library], ["libnccl.so.2"])
