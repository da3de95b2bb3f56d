"""The null libraries, built for a library that needs CUDA and asked through ctypes, as a program would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from test_elf import compile_library

from memfit.errors import MemfitError, MissingError
from memfit.hardware import gpus
from memfit.mirage import build as building
from memfit.mirage.build import build_libraries, find_compiler
from memfit.mirage.settings import Imaginary
from memfit.mirage.torchbuild import TorchBuild

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None or sys.platform != "linux", reason="gcc on Linux is needed")

GIB = 1 << 30
MIB = 1 << 20
H100 = next(gpu for gpu in gpus() if gpu.name == "h100-sxm-80gb")
HEAD = """
import ctypes, json, os
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
folder = os.environ["FOLDER"]
core, driver, runtime, nvml, nccl, blas = (ctypes.CDLL(f"{folder}/{name}", ctypes.RTLD_GLOBAL) for name in (
    "libmemfit_mirage.so", "libcuda.so.1", "libcudart.so.13", "libnvidia-ml.so.1", "libnccl.so.2", "libcublas.so.13"))
for count in (core.mirage_used, core.mirage_peak, core.mirage_pinned, core.mirage_managed): count.restype = c_uint64
MIB, GIB = 1 << 20, 1 << 30
def malloc(size):
    out = c_void_p()
    return runtime.cudaMalloc(byref(out), c_size_t(size)), out.value
def free_bytes():
    free, total = c_size_t(), c_size_t()
    assert runtime.cudaMemGetInfo(byref(free), byref(total)) == 0
    return free.value
def launch(function=None, stream=None):
    class Dim3(ctypes.Structure): _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]
    shape = Dim3(1, 1, 1), Dim3(32, 1, 1)
    return runtime.cudaLaunchKernel(c_void_p(function), *shape, None, c_size_t(0), c_void_p(stream))
def read(address, size):
    buffer = ctypes.create_string_buffer(b"x" * size, size)
    assert runtime.cudaMemcpy(buffer, c_void_p(address), c_size_t(size), 2) == 0
    return buffer.raw
def write(address, data):
    assert runtime.cudaMemcpy(c_void_p(address), data, c_size_t(len(data)), 1) == 0
def stream():
    out = c_void_p()
    assert runtime.cudaStreamCreateWithFlags(byref(out), 1) == 0
    return out.value
def event():
    out = c_void_p()
    assert runtime.cudaEventCreateWithFlags(byref(out), 2) == 0
    return out.value
V = c_void_p
"""


@pytest.fixture(scope="module")
def torchlike(tmp_path_factory):
    """A library that needs a runtime, a product and a communicator, in a folder like torch's."""
    folder = tmp_path_factory.mktemp("torch")
    (folder / "lib").mkdir()
    needed = {"libcudart.so.13": "cudaMalloc", "libnccl.so.2": "ncclAllReduce", "libcublas.so.13": "cublasGemmEx"}
    made = []
    for soname, function in needed.items():
        (folder / f"{function}.map").write_text(f"{soname} {{ global: *; }};\n")
        made.append(
            compile_library(
                folder,
                function,
                f"int {function}(void){{return 0;}}",
                f"-Wl,-soname,{soname}",
                f"-Wl,--version-script={folder / f'{function}.map'}",
            )
        )
    library = compile_library(
        folder,
        "torch",
        "int cudaMalloc(void), ncclAllReduce(void), cublasGemmEx(void);"
        "int f(void){return cudaMalloc() + ncclAllReduce() + cublasGemmEx();}",
        *map(str, made),
    )
    library.rename(folder / "lib" / "libtorch.so")
    return TorchBuild(python=Path(sys.executable), version="9.9.9", cuda=(13, 0), folder=folder)


@pytest.fixture(scope="module")
def built(torchlike, tmp_path_factory):
    return build_libraries(torchlike, extra=(), cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def ask(built):
    """Run a few lines against the libraries; what they leave in ``answer`` comes back."""

    def run(code, visible=None, **settings):
        settings = {"context_bytes": 0, **settings}
        device = Imaginary.of(settings.pop("gpu", H100), cuda=(13, 0), **settings)
        environment = {**os.environ, **device.environment(), "FOLDER": str(built.folder)}
        if visible is not None:
            environment["CUDA_VISIBLE_DEVICES"] = visible
        script = HEAD + textwrap.dedent(code) + "\nprint(json.dumps(answer))"
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_only_needed_libraries_are_made_and_they_know_their_names(built):
    assert set(built.sonames) == {
        "libcudart.so.13", "libcublas.so.13", "libnccl.so.2", "libcuda.so.1", "libnvidia-ml.so.1",
    }  # fmt: skip
    for name in built.sonames:
        assert (built.folder / name).is_file()
    assert (built.folder / "libcuda.so").resolve().name == "libcuda.so.1"


def test_a_second_build_is_the_first(torchlike, built, monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(building, "compile_libraries", refuse)
    assert build_libraries(torchlike, extra=(), cache=built.folder.parents[1]) == built


def test_builds_at_once_wait_for_each_other(torchlike, built, tmp_path):
    script = (
        "import sys; from pathlib import Path; from memfit.mirage.build import build_libraries;"
        "from memfit.mirage.torchbuild import TorchBuild;"
        "print(build_libraries(TorchBuild(python=Path('python'), version='9.9.9', cuda=(13, 0),"
        " folder=Path(sys.argv[1])), extra=(), cache=Path(sys.argv[2])).folder)"
    )
    command = [sys.executable, "-c", script, str(torchlike.folder), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {process.communicate(timeout=120)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    (folder,) = folders
    assert sorted(path.name for path in (tmp_path / "mirage").iterdir()) == sorted(["lock", Path(folder).name])
    assert Path(folder).name == built.folder.name


def test_nothing_half_made_is_left_when_the_compiler_fails(torchlike, tmp_path, monkeypatch):
    (tmp_path / "cc").write_text("#!/bin/sh\necho 'no such machine' >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    with pytest.raises(MemfitError, match="no such machine"):
        build_libraries(torchlike, extra=(), cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache" / "mirage").iterdir()] == ["lock"]


def test_no_compiler_is_said(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingError, match="C compiler"):
        find_compiler()


def test_a_cache_that_cannot_be_written_is_said(torchlike, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(MemfitError, match="cannot build"):
        build_libraries(torchlike, extra=(), cache=tmp_path / "cache")


# ---- memory ----


def test_memory_is_counted_in_pages_and_refused_beyond_the_capacity(ask):
    answer = ask(
        """
        one, a = malloc(3 * MIB)
        used = core.mirage_used(0)
        too_much, none = malloc(GIB)
        kept = runtime.cudaGetLastError(), runtime.cudaGetLastError()
        all_but, b = malloc(1016 * MIB)
        left = free_bytes()
        assert runtime.cudaFree(V(a)) == runtime.cudaFree(V(b)) == 0
        answer = dict(one=one, used=used, too_much=too_much, none=none, kept=kept, all_but=all_but, left=left,
                      end=core.mirage_used(0), peak=core.mirage_peak(0))
        """,
        total_bytes=1024 * MIB,
        context_bytes=4 * MIB,
    )
    assert answer == {
        "one": 0, "used": 4 * MIB, "too_much": 2, "none": None, "kept": [2, 0], "all_but": 0, "left": 0, "end": 0,
        "peak": 1020 * MIB,
    }  # fmt: skip


def test_small_allocations_share_pages(ask):
    answer = ask(
        """
        blocks = [malloc(1000)[1] for _ in range(2000)]
        first = core.mirage_used(0)
        blocks += [malloc(1000)[1] for _ in range(100)]
        second = core.mirage_used(0)
        for block in blocks: assert runtime.cudaFree(V(block)) == 0
        answer = [first, second, core.mirage_used(0), len(set(blocks))]
        """
    )
    assert answer == [2 * MIB, 4 * MIB, 0, 2100]


@pytest.mark.parametrize("order", ["ascending", "descending", 7])
def test_addresses_do_not_overlap_and_follow_the_order(ask, order):
    answer = ask(
        """
        import random
        random.seed(1)
        answer, held = [], {}
        for step in range(600):
            if held and random.random() < 0.4:
                address = random.choice(list(held))
                assert runtime.cudaFree(V(address)) == 0
                del held[address]
            else:
                size = random.choice([512, 2, 20 * MIB, 300 * MIB, GIB])
                code, address = malloc(size)
                assert code == 0
                answer.append(address)
                held[address] = size
        spans = sorted(held.items())
        assert all(a + s <= b for (a, s), (b, _) in zip(spans, spans[1:]))
        assert all(address % (2 * MIB) == 0 for address in answer)
        """,
        order=order,
        total_bytes=1 << 42,
    )
    if order == "ascending":
        assert answer == sorted(answer)
    elif order == "descending":
        assert answer == sorted(answer, reverse=True)
    else:
        assert answer not in (sorted(answer), sorted(answer, reverse=True))
        assert answer[:5] != sorted(answer[:5]) or answer[5:10] != sorted(answer[5:10])


def test_addresses_are_used_again_when_they_run_out(ask):
    answer = ask(
        """
        answer = 0
        for step in range(1000):  # 500 TiB, more than there are addresses
            code, address = malloc(GIB << 9)
            answer += code
            assert runtime.cudaFree(V(address)) == 0
        """,
        total_bytes=1 << 40,
    )
    assert answer == 0


def test_virtual_memory_counts_what_is_created_until_it_is_unmapped_and_released(ask):
    answer = ask(
        """
        base, handle = c_uint64(), c_void_p()
        answer = []
        def note(code): answer.append([code, core.mirage_used(0) // MIB])
        note(driver.cuMemAddressReserve(byref(base), c_size_t(GIB), c_size_t(0), c_uint64(0), c_uint64(0)))
        note(driver.cuMemCreate(byref(handle), c_size_t(20 * MIB), None, c_uint64(0)))
        note(driver.cuMemMap(base, c_size_t(20 * MIB), c_size_t(0), handle, c_uint64(0)))
        note(driver.cuMemRelease(handle))
        note(driver.cuMemUnmap(base, c_size_t(20 * MIB)))
        note(driver.cuMemAddressFree(base, c_size_t(GIB)))
        note(driver.cuMemCreate(byref(handle), c_size_t(2 * GIB), None, c_uint64(0)))
        """,
        total_bytes=GIB,
    )
    assert answer == [[0, 0], [0, 20], [0, 20], [0, 20], [0, 0], [0, 0], [2, 0]]


def test_every_device_has_room_for_ranges_of_a_card_without_a_limit(ask):
    answer = ask(
        """
        base, answer = c_uint64(), []
        for device in range(16):
            assert runtime.cudaSetDevice(device) == 0
            for pool in range(8):
                rest = c_size_t(0), c_uint64(0), c_uint64(0)
                assert driver.cuMemAddressReserve(byref(base), c_size_t(9 << 39), *rest) == 0
                assert core.mirage_owner(base) == core.mirage_owner(c_uint64(base.value + (9 << 39) - 1)) == device
                answer.append(base.value)
        assert core.mirage_owner(V(id(answer))) == -1
        """,
        count=16,
        total_bytes=4 << 40,
    )
    assert len(set(answer)) == 128


def test_pools_take_32_mib_at_a_time_and_keep_it_until_trimmed(ask):
    answer = ask(
        """
        out, pool, answer = c_void_p(), c_void_p(), []
        assert runtime.cudaMallocAsync(byref(out), c_size_t(5 * MIB), None) == 0
        answer.append(core.mirage_used(0) // MIB)
        assert runtime.cudaFreeAsync(out, None) == 0
        answer.append(core.mirage_used(0) // MIB)
        runtime.cudaDeviceGetDefaultMemPool(byref(pool), 0)
        runtime.cudaMemPoolTrimTo(pool, c_size_t(0))
        answer.append(core.mirage_used(0) // MIB)
        """
    )
    assert answer == [32, 32, 0]


def test_pinned_and_managed_memory_is_the_hosts(ask):
    answer = ask(
        """
        pinned, managed = c_void_p(), c_void_p()
        assert runtime.cudaHostAlloc(byref(pinned), c_size_t(64 * MIB), 0) == 0
        assert runtime.cudaMallocManaged(byref(managed), c_size_t(32 * MIB), 1) == 0
        ctypes.memset(managed, 7, 100)  # real memory
        answer = [core.mirage_pinned(), core.mirage_managed(), core.mirage_used(0)]
        kinds = []
        for address in (pinned.value, managed.value, malloc(10)[1], id(answer)):
            class Attributes(ctypes.Structure): _fields_ = [("type", c_int), ("device", c_int), ("d", V), ("h", V)]
            attributes = Attributes()
            assert runtime.cudaPointerGetAttributes(byref(attributes), V(address)) == 0
            kinds.append(attributes.type)
        assert runtime.cudaFreeHost(pinned) == runtime.cudaFree(managed) == 0
        answer += kinds + [core.mirage_pinned(), core.mirage_managed()]
        """
    )
    assert answer == [64 * MIB, 32 * MIB, 0, 1, 3, 2, 0, 0, 0]


def test_devices_keep_separate_accounts_and_cuda_visible_devices_counts(ask):
    code = """
        n = c_int()
        code = runtime.cudaGetDeviceCount(byref(n))
        answer = [code, n.value]
        if n.value > 1:
            assert runtime.cudaSetDevice(1) == 0
            _, address = malloc(10 * MIB)
            answer += [core.mirage_used(0), core.mirage_used(1), core.mirage_owner(V(address))]
        answer.append(runtime.cudaSetDevice(9))
        """
    assert ask(code, count=4) == [0, 4, 0, 10 * MIB, 1, 101]
    assert ask(code, count=4, visible="2,3") == [0, 2, 0, 10 * MIB, 1, 101]
    assert ask(code, count=4, visible="1,-1,2") == [0, 1, 101]
    assert ask(code, count=4, visible="") == [100, 0, 101]


# ---- what the driver says of the device ----


@pytest.mark.parametrize("name", ["h100-sxm-80gb", "t4", "rtx-4090", "b200-sxm", "p40"])
def test_attributes_properties_and_monitor_agree(ask, name):
    gpu = next(gpu for gpu in gpus() if gpu.name == name)
    answer = ask(
        """
        def attribute(which):
            out = c_int()
            assert driver.cuDeviceGetAttribute(byref(out), which, 0) == 0
            return out.value
        properties = ctypes.create_string_buffer(2048)
        assert runtime.cudaGetDeviceProperties(properties, 0) == 0
        device, memory, title = c_void_p(), (c_uint64 * 3)(), ctypes.create_string_buffer(96)
        nvml.nvmlDeviceGetHandleByIndex_v2(0, byref(device))
        nvml.nvmlDeviceGetMemoryInfo(device, memory)
        nvml.nvmlDeviceGetName(device, title, 96)
        total = c_size_t()
        driver.cuDeviceTotalMem_v2(byref(total), 0)
        malloc(100 * MIB)
        free = free_bytes()
        nvml.nvmlDeviceGetMemoryInfo(device, memory)
        answer = dict(name=properties.value.decode(), monitor=title.value.decode(), total=total.value, free=free,
                      memory=list(memory), sms=attribute(16), capability=[attribute(75), attribute(76)],
                      bandwidth=2 * attribute(36) * 1000 * attribute(37) // 8, threads=attribute(39),
                      shared=attribute(97))
        """,
        gpu=gpu,
        context_bytes=gpu.context_bytes,
    )
    assert answer["name"] == answer["monitor"] == gpu.title
    assert answer["total"] == gpu.total_bytes
    assert answer["free"] == gpu.total_bytes - gpu.context_bytes - 100 * MIB
    assert answer["memory"] == [gpu.total_bytes, answer["free"], gpu.total_bytes - answer["free"]]
    assert answer["sms"] == gpu.sm_count
    assert answer["capability"] == list(gpu.compute_capability)
    assert answer["bandwidth"] == pytest.approx(gpu.memory_bytes_per_s, rel=1e-4)
    assert answer["threads"] in (1024, 1536, 2048)
    assert 48 << 10 <= answer["shared"] <= 227 << 10


def test_occupancy_is_bound_by_threads_blocks_and_shared_memory(ask):
    code = """
        def blocks(threads, shared):
            one, two = c_int(), c_int()
            rest = V(1), threads, c_size_t(shared)
            assert runtime.cudaOccupancyMaxActiveBlocksPerMultiprocessor(byref(one), *rest) == 0
            assert driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(byref(two), *rest) == 0
            assert one.value == two.value
            return one.value
        kernels = (1024, 0), (256, 0), (32, 0), (33, 0), (128, 48 << 10), (128, 1 << 20)
        answer = [blocks(*kernel) for kernel in kernels]
        """
    assert ask(code) == [2, 8, 32, 32, 4, 1]
    t4 = next(gpu for gpu in gpus() if gpu.name == "t4")  # no shared memory is reserved before compute capability 8.0
    assert ask(code, gpu=t4) == [1, 4, 16, 16, 1, 1]


# ---- values ----


def test_what_was_written_reads_back_until_a_kernel_runs(ask):
    answer = ask(
        """
        _, a = malloc(4096)
        _, b = malloc(4096)
        write(a, b"hello world")
        first = read(a, 11), read(a + 6, 5), read(b, 5)
        assert runtime.cudaMemcpy(V(b), V(a), c_size_t(5), 3) == 0
        second = read(b, 5)
        assert runtime.cudaMemset(V(a), 255, c_size_t(4)) == 0
        third = read(a, 3), read(a, 11)
        write(a, b"hello world")
        assert launch() == 0
        answer = [part.hex() for part in (*first, second, *third, read(a, 11))]
        """
    )
    text = [bytes.fromhex(part) for part in answer]
    assert text == [b"hello world", b"world", bytes(5), b"hello", b"\xff" * 3, bytes(11), bytes(11)]


def test_library_calls_are_kernels_and_setters_are_not(ask):
    answer = ask(
        """
        _, a = malloc(4096)
        write(a, b"hello")
        handle = c_void_p()
        assert blas.cublasCreate_v2(byref(handle)) == 0
        before = read(a, 5)
        assert blas.cublasGemmEx() == 0
        answer = [before.decode(), read(a, 5).hex()]
        """
    )
    assert answer == ["hello", "00" * 5]


def test_unknown_numbers_read_as_zeros_or_ones(ask):
    code = """
        import struct
        _, a = malloc(4096)
        single, wide = struct.unpack("<f", read(a, 4))[0], struct.unpack("<q", read(a, 8))[0]
        answer = [read(a, 1)[0], single, wide, any(read(a, 64))]
        """
    assert ask(code) == [0, 0.0, 0, False]
    assert ask(code, values="ones") == [1, 1.0, 1, False]


def test_large_copies_to_the_host_take_no_memory(ask):
    answer = ask(
        """
        import mmap, re
        _, a = malloc(4 * GIB)
        room = mmap.mmap(-1, 2 * GIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        room[5 * MIB] = 7
        start = ctypes.addressof(ctypes.c_char.from_buffer(room))
        assert runtime.cudaMemcpy(V(start + 10), V(a), c_size_t(2 * GIB - 20), 2) == 0
        peak_kib = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
        answer = [peak_kib // 1024, room[5 * MIB], room[2 * GIB - 21]]
        """
    )
    assert answer[0] < 256
    assert answer[1:] == [0, 0]


# ---- streams, events, capture ----


@pytest.mark.parametrize(("lag", "queries"), [(0, [0, 0, 0, 0]), (3, [600, 600, 0, 0]), (None, [600, 600, 600, 0])])
def test_an_event_completes_some_work_later_or_when_waited_for(ask, lag, queries):
    answer = ask(
        """
        s, e = stream(), event()
        assert runtime.cudaEventRecord(V(e), V(s)) == 0
        first = runtime.cudaEventQuery(V(e))
        launch(stream=s)
        second = runtime.cudaEventQuery(V(e))
        launch(stream=s); launch(stream=s)
        third = runtime.cudaEventQuery(V(e))
        assert runtime.cudaStreamSynchronize(V(s)) == 0
        answer = [first, second, third, runtime.cudaEventQuery(V(e))]
        """,
        lag=lag,
    )
    assert answer == queries


def test_capture_spreads_over_events_counts_kernels_and_forbids_waiting(ask):
    answer = ask(
        """
        s, t, e, graph, status = stream(), stream(), event(), c_void_p(), c_int()
        def capturing(x):
            assert runtime.cudaStreamIsCapturing(V(x), byref(status)) == 0
            return status.value
        answer = [capturing(s), runtime.cudaStreamBeginCapture(V(s), 1), capturing(s), capturing(t)]
        runtime.cudaEventRecord(V(e), V(s)); runtime.cudaStreamWaitEvent(V(t), V(e), 0)
        answer.append(capturing(t))
        launch(stream=s); launch(stream=t); launch(stream=stream())
        assert runtime.cudaStreamEndCapture(V(s), byref(graph)) == 0
        count = c_size_t()
        runtime.cudaGraphGetNodes(graph, None, byref(count))
        answer += [count.value, capturing(t)]
        runtime.cudaStreamBeginCapture(V(s), 0)
        answer += [runtime.cudaStreamSynchronize(V(s)), capturing(s), runtime.cudaStreamEndCapture(V(s), byref(graph))]
        answer += [capturing(s), runtime.cudaStreamBeginCapture(None, 0)]
        """
    )
    assert answer == [0, 0, 1, 0, 1, 2, 0, 900, 2, 901, 0, 900]


# ---- code for the device ----


def test_kernels_run_only_where_there_is_code_for_the_device(ask):
    code = """
        import struct
        def program(*images):
            body = b"".join(struct.pack("<HHIQ3II", kind, 0x101, 64, 8, 0, 0, 0, arch).ljust(72, b"\\0")
                            for kind, arch in images)
            data = ctypes.create_string_buffer(struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body)
            wrapper = ctypes.create_string_buffer(struct.pack("<IIQQ", 0x466243B1, 1, ctypes.addressof(data), 0))
            keep.append((data, wrapper))
            getattr(runtime, "__cudaRegisterFatBinary").restype = c_void_p
            return getattr(runtime, "__cudaRegisterFatBinary")(wrapper)
        keep, answer = [], []
        for number, images in enumerate(PROGRAMS):
            handle = program(*images)
            getattr(runtime, "__cudaRegisterFunction")(V(handle), V(0x5000 + 16 * number))
            attributes = (c_int * 64)()
            code = runtime.cudaFuncGetAttributes(attributes, V(0x5000 + 16 * number))
            answer.append([code, launch(0x5000 + 16 * number), attributes[8]])
        """
    programs = [[(2, 75), (2, 80), (2, 86)], [(2, 90)], [(2, 80), (1, 80)], [(1, 90)], [(2, 75), (1, 75)]]
    ada = next(gpu for gpu in gpus() if gpu.name == "l4")
    answer = ask(code.replace("PROGRAMS", repr(programs)), gpu=ada)
    assert answer == [[0, 0, 86], [209, 209, 0], [0, 0, 80], [209, 209, 0], [0, 0, 75]]


# ---- communicators ----


def test_communicators_know_their_place_and_keep_known_values(ask):
    answer = ask(
        """
        class Id(ctypes.Structure): _fields_ = [("bytes", ctypes.c_char * 128)]
        comm, n, r = c_void_p(), c_int(), c_int()
        assert nccl.ncclCommInitRank(byref(comm), 8, Id(), 3) == 0
        nccl.ncclCommCount(comm, byref(n)); nccl.ncclCommUserRank(comm, byref(r))
        _, a = malloc(4096)
        _, b = malloc(4096)
        write(a, b"abcd")
        assert nccl.ncclAllGather(V(a), V(b), c_size_t(1), 2, comm, None) == 0
        gathered = read(b, 4) + read(b + 28, 4)
        assert nccl.ncclAllReduce(V(a), V(a), c_size_t(1), 2, 0, comm, None) == 0
        answer = [n.value, r.value, gathered.decode(), read(a, 4).hex()]
        """
    )
    assert answer == [8, 3, "abcdabcd", "00000000"]


def test_log_and_summary(ask, tmp_path):
    ask(
        """
        malloc(5 * MIB); malloc(100 * GIB)
        blas.cublasGemmEx(); blas.cublasGemmEx()
        answer = None
        """,
        log=tmp_path / "log-{pid}.txt",
        summary=tmp_path / "summary.json",
    )
    (log,) = tmp_path.glob("log-*.txt")
    lines = log.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["malloc", "refused", "unmodelled"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["launches"] == 2
    assert summary["unmodelled_functions"] == 1
    assert summary["devices"] == [{"used_bytes": 6 * MIB, "peak_bytes": 6 * MIB, "refused": 1}]
