"""Which PyTorch a Python interpreter would import, found out without importing it."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from memfit.errors import MemfitError, MissingError

_TIMEOUT_S = 60.0
# Runs in the user's interpreter: finds packages, executes none of them.
_PROBE = """
import ast, importlib.metadata, importlib.util, json, pathlib, sys
def folder(name):
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    return places[0] if places else None
torch, version = folder("torch"), {}
if torch:
    try:
        tree = ast.parse(pathlib.Path(torch, "version.py").read_text(encoding="utf-8"))
        for node in tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant):
                version[target.id] = node.value.value
    except (OSError, SyntaxError):
        pass
try:
    requires = importlib.metadata.requires("torch") if torch else None
except importlib.metadata.PackageNotFoundError:
    requires = None
print(json.dumps({
    "torch": torch, "version": version.get("__version__"), "cuda": version.get("cuda"), "hip": version.get("hip"),
    "triton": folder("triton"), "bitsandbytes": folder("bitsandbytes"),
    "requires": requires or [],
}))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchBuild:
    """A CUDA build of PyTorch in some environment.

    Attributes:
        python: the interpreter.
        version: ``torch.__version__``, e.g. "2.13.0+cu130".
        cuda: the CUDA release it was built with, (13, 0).
        folder: of the package.
        extensions: shared libraries of other packages that need CUDA (bitsandbytes).
        triton: folder of the triton package, None when there is none.
        cudnn, nccl: the releases that it expects, as those libraries number themselves (92000, 22907).
    """

    python: Path
    version: str
    cuda: tuple[int, int]
    folder: Path
    extensions: tuple[Path, ...] = ()
    triton: Path | None = None
    cudnn: int = 91000
    nccl: int = 22700

    @property
    def libraries(self) -> tuple[Path, ...]:
        """The shared libraries of PyTorch and of the known extensions, sorted."""
        own = sorted(path for path in (self.folder / "lib").glob("lib*.so*") if path.is_file())
        return (*own, *self.extensions)


def inspect_python(python: Path) -> TorchBuild:
    """Find the CUDA build of PyTorch that ``python`` would import.

    Raises:
        MissingError: no such interpreter, no torch, or a torch without CUDA.
        MemfitError: the interpreter cannot be asked.
    """
    command = [str(python), "-I", "-c", _PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        found = json.loads(done.stdout)
    except FileNotFoundError as error:
        msg = f"there is no Python interpreter at {python}"
        raise MissingError(msg) from error
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        msg = f"cannot ask {python} for its packages: {error}"
        raise MemfitError(msg) from error
    if not found["torch"]:
        msg = f"{python} has no torch"
        raise MissingError(msg, hint="`memfit dryrun setup` makes an environment with PyTorch's CUDA build")
    if not found["cuda"]:
        kind = f"a ROCm build ({found['version']})" if found["hip"] else f"no CUDA build ({found['version']})"
        msg = f"the torch of {python} is {kind}"
        raise MissingError(
            msg, hint="`memfit dryrun setup` makes an environment with PyTorch's CUDA build; no GPU is needed for it"
        )
    major, _, minor = str(found["cuda"]).partition(".")
    bitsandbytes = sorted(Path(found["bitsandbytes"]).glob("libbitsandbytes_cuda*.so")) if found["bitsandbytes"] else []
    return TorchBuild(
        python=python,
        version=str(found["version"]),
        cuda=(int(major), int(minor.split(".")[0] or 0)),
        folder=Path(found["torch"]),
        extensions=tuple(path for path in bitsandbytes if f"_cuda{major}" in path.name),
        triton=Path(found["triton"]) if found["triton"] else None,
        **_components(found["requires"]),
    )


def _components(requires: list[str]) -> dict[str, int]:
    """The cuDNN and NCCL releases that the wheel's metadata pins, as one number each; empty when it pins none."""
    found = {}
    for line in requires:
        pin = re.match(r"nvidia-(cudnn|nccl)-cu\d+\s*\(?==\s*(\d+)\.(\d+)\.(\d+)", line)
        if pin:
            major, minor, patch = (int(part) for part in pin.groups()[1:])
            found[pin[1]] = 10_000 * major + 100 * minor + patch
    return found
