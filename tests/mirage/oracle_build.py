"""Builds the accounting-only CUDA and, per torch release, the driver around the real allocator binary."""

# ruff: noqa: T201 - a command that prints
from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from oracle_wheels import RELEASES, OracleUnavailableError, cache_dir, fetch

NATIVE = Path(__file__).with_name("native")


def numbers(version: str) -> tuple[int, ...]:
    """ "2.11.0" as (2, 11, 0)."""
    return tuple(int(part) for part in version.split("."))


def build(version: str) -> tuple[Path, str]:
    """The driver of one release and the library path it runs with; built once per source.

    Raises:
        OracleUnavailableError: no wheel, no compiler, or the driver does not compile for this release.
    """
    if not shutil.which("gcc") or not shutil.which("g++"):
        raise OracleUnavailableError("gcc and g++ are needed to build the allocator oracle")
    torch = fetch(version)
    major = 13 if numbers(version) >= (2, 11) else 12
    sources = sorted(path for path in NATIVE.rglob("*") if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in [*sources, Path(__file__)])).hexdigest()[:12]
    stub = cache_dir() / "oracle" / digest / f"stub{major}"
    driver = cache_dir() / "oracle" / digest / f"driver-{version}"
    if not (stub / "libcuda.so.1").exists():
        build_stub(stub, major)
    if not driver.exists():
        build_driver(driver, version, torch, stub, major)
    return driver, f"{torch / 'torch/lib'}:{stub}"


def build_stub(folder: Path, major: int) -> None:
    """One library that answers as the runtime, as the driver and as NVML."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"libcudart.so.{major}"
    versions = folder / "versions"
    versions.write_text(f"{name} {{ global: *; }};\n")
    options = [f"-Wl,-soname,{name}", f"-Wl,--version-script={versions}"]
    run(["gcc", "-w", "-shared", "-fPIC", "-O1", *options, "-o", str(folder / name), str(NATIVE / "stub.c")])
    for alias in ("libnvidia-ml.so.1", "libcuda.so.1"):
        (folder / alias).unlink(missing_ok=True)
        (folder / alias).symlink_to(name)


def build_driver(target: Path, version: str, torch: Path, stub: Path, major: int) -> None:
    """The program that feeds commands to ``libc10_cuda.so`` of one release."""
    release = numbers(version)
    flags = [f"-DCUDART_VERSION={major}000"]
    if release < (2, 7):
        flags.append("-D_GLIBCXX_USE_CXX11_ABI=0")  # the manylinux1 wheels
    if "markCaptureBegin" in (torch / "torch/include/c10/cuda/CUDACachingAllocator.h").read_text():
        flags.append("-DCAPTURE_MARKS")
    if "beginAllocateStreamToPool" in (torch / "torch/include/c10/cuda/CUDACachingAllocator.h").read_text():
        flags.append("-DSTREAM_POOLS")
    if release >= (2, 11):
        flags.append("-DPEER_CACHE")
    runtime = stub / f"libcudart.so.{major}"
    part = target.with_suffix(".part")
    includes = [f"-I{NATIVE / 'include'}", f"-I{torch / 'torch/include'}"]
    libraries = [f"-L{torch / 'torch/lib'}", "-lc10_cuda", "-lc10", str(runtime), "-Wl,--allow-shlib-undefined"]
    source = str(NATIVE / "driver.cpp")
    run(["g++", "-w", "-std=c++20", "-O0", *flags, *includes, source, "-o", str(part), *libraries])
    part.rename(target)


def run(command: list[str]) -> None:
    """One compiler call; its complaints become the message."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OracleUnavailableError(f"{command[0]} failed: {done.stderr[:2000]}")


if __name__ == "__main__":
    for release in sys.argv[1:] or RELEASES:
        print(release, *build(release))
