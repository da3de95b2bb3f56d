"""Builds the null libraries of one PyTorch build with the system C compiler, once, and keeps them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from memfit.errors import MemfitError, MissingError
from memfit.mirage.generate import generated_source, version_script
from memfit.mirage.needs import NeededLibrary, found_elsewhere, needed_libraries
from memfit.mirage.torchbuild import TorchBuild

NATIVE = Path(__file__).with_name("native")
CORE = "libmemfit_mirage.so"
CORE_SOURCES = ("core.c", "stream.c")
_COMPILE_TIMEOUT_S = 120.0
_DRIVER = "libcuda.so.1"
_RUNTIME = "libcudart"
# Own sources are checked by their tests; warnings of whatever compiler is here would not help the user.
_FLAGS = ("-shared", "-fPIC", "-O1", "-w", "-std=gnu11", "-fvisibility=hidden", "-pthread")


@dataclass(frozen=True, kw_only=True, slots=True)
class Libraries:
    """A folder of null libraries.

    Attributes:
        folder: where they lie.
        sonames: their names.
        preload: PyTorch would find the vendor's own libraries first.
    """

    folder: Path
    sonames: tuple[str, ...]
    preload: bool = False

    def environment(self, cache: Path) -> dict[str, str]:
        """The variables under which a child process loads these libraries instead of the vendor's."""
        before = os.environ.get("LD_LIBRARY_PATH")
        found = {
            "LD_LIBRARY_PATH": f"{self.folder}:{before}" if before else str(self.folder),
            "MEMFIT_MIRAGE_LIBRARY": str(self.folder / CORE),
            "TRITON_LIBCUDA_PATH": str(self.folder),
            "TRITON_CACHE_DIR": str(cache / "mirage" / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "mirage" / "inductor"),
        }
        if self.preload:
            preload = [str(self.folder / name) for name in (CORE, *self.sonames)]
            found["LD_PRELOAD"] = ":".join([*preload, *filter(None, [os.environ.get("LD_PRELOAD")])])
        return found


def build_libraries(build: TorchBuild, *, extra: Sequence[Path], cache: Path) -> Libraries:
    """The null libraries for a PyTorch build and further libraries; built the first time.

    Builds of several processes at once wait for each other; a folder appears complete or not at all.

    Raises:
        MissingError: no C compiler.
        MemfitError: the compiler fails, or the cache folder cannot be written.
        InputFileError: a library that cannot be read.
    """
    needed = needed_libraries([*build.libraries, *extra])
    defines = _defines(build)
    digest = _digest(needed, defines)
    folder = cache / "mirage" / f"torch-{build.version}-{digest}"
    sonames = tuple(library.soname for library in needed)
    result = Libraries(folder=folder, sonames=sonames, preload=found_elsewhere([*build.libraries, *extra], sonames))
    if folder.is_dir():
        return result
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / "lock"):
            if folder.is_dir():
                return result
            with tempfile.TemporaryDirectory(prefix="build-", dir=folder.parent) as temporary:
                made = Path(temporary) / "libraries"
                compile_libraries(needed, made, defines)
                made.rename(folder)
    except OSError as error:
        msg = f"cannot build the libraries of the imaginary GPU in {folder.parent}: {error}"
        raise MemfitError(msg, hint="MEMFIT_CACHE=folder moves the cache") from error
    return result


def compile_libraries(needed: Sequence[NeededLibrary], folder: Path, defines: Sequence[str]) -> None:
    """Compile the account keeper and one library per SONAME into a new folder.

    Raises:
        MissingError: no C compiler.
        MemfitError: the compiler fails.
    """
    compiler = find_compiler()
    folder.mkdir()
    _compile(compiler, folder / CORE, [NATIVE / name for name in CORE_SOURCES], [f"-Wl,-soname,{CORE}", "-ldl"])
    _link_library(compiler, next(one for one in needed if one.soname == _DRIVER), folder, defines)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        rest = [one for one in needed if one.soname != _DRIVER]
        for done in [pool.submit(_link_library, compiler, one, folder, defines) for one in rest]:
            done.result()
    (folder / "libcuda.so").symlink_to(_DRIVER)  # Triton links with -lcuda


def find_compiler() -> str:
    """The C compiler: ``$CC``, else cc, gcc or clang.

    Raises:
        MissingError: there is none.
    """
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        found = shutil.which(name)
        if found:
            return found
    msg = "building the libraries of the imaginary GPU needs a C compiler, and there is none"
    raise MissingError(msg, hint="install gcc or clang, or set CC=/path/to/compiler")


def _link_library(compiler: str, library: NeededLibrary, folder: Path, defines: Sequence[str]) -> None:
    stem = library.soname.replace(".", "_")
    generated = folder / f"{stem}.c"
    generated.write_text(generated_source(library), encoding="utf-8")
    sources = [generated]
    if library.family is not None:
        sources += [NATIVE / name for name in library.family.sources]
    options = [
        f"-Wl,-soname,{library.soname}",
        "-Wl,-rpath,$ORIGIN",
        f"-L{folder}",
        f"-l:{CORE}",
        *(f"-D{define}" for define in defines),
    ]
    if library.family is not None and library.family.stem == _RUNTIME:
        options.append(f"-l:{_DRIVER}")
    script = version_script(library.functions.items())
    if script is not None:
        (folder / f"{stem}.map").write_text(script, encoding="utf-8")
        options.append(f"-Wl,--version-script={folder / f'{stem}.map'}")
    _compile(compiler, folder / library.soname, sources, [*options, "-ldl"])


def _compile(compiler: str, target: Path, sources: Sequence[Path], options: Sequence[str]) -> None:
    command = [compiler, *_FLAGS, f"-I{NATIVE}", "-o", str(target), *map(str, sources), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        msg = f"{compiler} did not finish {target.name} within {_COMPILE_TIMEOUT_S:.0f} s"
        raise MemfitError(msg) from error
    if done.returncode:
        msg = f"{compiler} cannot build {target.name}: {done.stderr.strip()[:2000]}"
        raise MemfitError(msg, hint="gcc 9 or clang 11 or newer is expected")


def _defines(build: TorchBuild) -> tuple[str, ...]:
    """What the C sources are told about the PyTorch build."""
    return (
        f"CUDA_MAJOR={build.cuda[0]}",
        f"CUDNN_VERSION={build.cudnn}",
        f"NCCL_VERSION={build.nccl}",
    )


def _digest(needed: Sequence[NeededLibrary], defines: Sequence[str]) -> str:
    """Names everything that the result depends on."""
    state = hashlib.sha256(platform.machine().encode())
    for path in sorted(NATIVE.iterdir()):
        state.update(path.read_bytes())
    for library in needed:
        state.update(generated_source(library).encode())
        state.update((version_script(library.functions.items()) or "").encode())
    state.update(" ".join((*_FLAGS, *defines)).encode())
    return state.hexdigest()[:12]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
