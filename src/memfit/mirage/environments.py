"""Environments with PyTorch's CUDA build and none of the vendor's libraries: half a gigabyte instead of four.

``plan_environment`` asks pip which wheel it would take and how large it is, ``make_environment`` makes it, and
``find_environment`` finds the one that exists. Everything lies in memfit's cache folder. Where wheels come from is
pip's own configuration; only local folders and constraints are left out, as they tend to hold builds without CUDA.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfit.errors import MemfitError, MissingError
from memfit.mirage.machine import default_cache
from memfit.units import format_bytes

DEFAULT_TORCH = "2.13"
_MARK = "memfit-environment.json"
_PLAN_TIMEOUT_S = 300.0
_INSTALL_TIMEOUT_S = 3600.0
_VERSION = re.compile(r"\d+\.\d+(\.\d+)?")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VENDOR = re.compile(r"(nvidia|cuda|triton)([-_.].*)?")
# What of pip's configuration says how to reach an index, rather than what to prefer.
_CONNECTION = ("index-url", "cert", "client-cert", "proxy", "trusted-host", "timeout", "retries")
_LOCAL_OPTIONS = ("PIP_FIND_LINKS", "PIP_CONSTRAINT", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_REQUIREMENT")


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentPlan:
    """An environment before it is made.

    Attributes:
        version: of torch.
        folder: where it will lie.
        wheel: file name of the wheel.
        download_bytes: size of the wheel, None when the index does not say.
        requirements: the pure Python packages that torch imports.
        triton: requirement of Triton, for torch.compile; None to leave it out.
        exists: it is already there.
    """

    version: str
    folder: Path
    wheel: str
    download_bytes: int | None
    requirements: tuple[str, ...]
    triton: str | None
    exists: bool

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def describe(self) -> str:
        """One sentence for the user: what will be downloaded, how much, and where it goes."""
        if self.exists:
            return f"torch {self.version} is ready in {self.folder}"
        size = "of unknown size" if self.download_bytes is None else f"of {format_bytes(self.download_bytes)}"
        more = f", {len(self.requirements)} pure Python packages" + (" and Triton" if self.triton else "")
        return f"{self.wheel} {size}{more} into {self.folder}; none of NVIDIA's libraries"


def plan_environment(torch: str = DEFAULT_TORCH, *, triton: bool = False, cache: Path | None = None) -> EnvironmentPlan:
    """Ask pip which CUDA wheel of torch it would take for this Python, without downloading it.

    Args:
        torch: release, "2.13" or "2.13.0".
        triton: with Triton, which torch.compile needs.
        cache: folder for everything made, instead of the default.

    Raises:
        MemfitError: not a release, none for this Python and machine, or one without CUDA.
        MissingError: pip is not there, or the index does not answer.
    """
    if not _VERSION.fullmatch(torch):
        msg = f"`{torch}` is not a torch release"
        raise MemfitError(msg, hint="for example 2.13 or 2.13.0")
    wanted = torch if torch.count(".") == 2 else f"{torch}.*"
    report = _pip(
        Path(sys.executable),
        ["install", "--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "--quiet",
         "--report", "-", f"torch=={wanted}"],
        timeout_s=_PLAN_TIMEOUT_S,
    )  # fmt: skip
    try:
        item = json.loads(report)["install"][0]
        metadata, url = item["metadata"], str(item["download_info"]["url"])
    except (json.JSONDecodeError, LookupError, TypeError) as error:
        msg = "pip's report cannot be read"
        raise MemfitError(msg, hint="pip 22.2 or newer is expected") from error
    version, requires = str(metadata["version"]), [str(line) for line in metadata.get("requires_dist", ())]
    own = [line for line in requires if "extra ==" not in line]
    if not any(re.match(r"(nvidia|cuda)[-_]", line) for line in own):
        msg = f"the torch {version} that pip finds for this machine is not built for CUDA"
        raise MemfitError(msg, hint="CUDA wheels of torch exist for Linux on x86_64 and aarch64")
    name = f"torch-{version}-py{sys.version_info[0]}.{sys.version_info[1]}{'-triton' if triton else ''}"
    folder = _root(cache) / name
    return EnvironmentPlan(
        version=version,
        folder=folder,
        wheel=url.rsplit("/", 1)[-1].split("#")[0],
        download_bytes=_size(url),
        requirements=(*(_bare(line) for line in own if not _VENDOR.fullmatch(_name(line).lower())), "numpy"),
        triton=next((_bare(line) for line in own if _name(line).lower() == "triton"), None) if triton else None,
        exists=(folder / _MARK).exists(),
    )


def make_environment(plan: EnvironmentPlan, *, echo: Callable[[str], None] = lambda _: None) -> Path:
    """Make a planned environment, unless it exists; returns its interpreter.

    Args:
        plan: of ``plan_environment``.
        echo: told what happens, a line at a time.

    Raises:
        MemfitError: a step fails, or the cache folder cannot be written.
    """
    try:
        plan.folder.parent.mkdir(parents=True, exist_ok=True)
        with (plan.folder.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (plan.folder / _MARK).exists():
                return plan.python
            if plan.folder.exists():
                shutil.rmtree(plan.folder)  # an earlier attempt that did not end
            echo(f"creating {plan.folder}")
            _run([sys.executable, "-m", "venv", str(plan.folder)], _INSTALL_TIMEOUT_S)
            echo(f"installing {plan.wheel} without NVIDIA's libraries")
            quiet = ["install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
            _pip(plan.python, [*quiet, "--no-deps", f"torch=={plan.version}"], timeout_s=_INSTALL_TIMEOUT_S)
            echo("installing what torch imports: " + ", ".join(_name(line) for line in plan.requirements))
            _pip(plan.python, [*quiet, *plan.requirements], timeout_s=_INSTALL_TIMEOUT_S)
            if plan.triton:
                echo(f"installing {plan.triton}")
                _pip(plan.python, [*quiet, "--no-deps", plan.triton], timeout_s=_INSTALL_TIMEOUT_S)
            (plan.folder / _MARK).write_text(json.dumps({"torch": plan.version, "wheel": plan.wheel}) + "\n")
    except OSError as error:
        msg = f"cannot make the environment {plan.folder}: {error}"
        raise MemfitError(msg, hint="MEMFIT_CACHE=folder moves the cache") from error
    return plan.python


def find_environment(torch: str | None = None, *, cache: Path | None = None) -> Path | None:
    """The interpreter of the newest environment that was made, of one release if ``torch`` names it."""
    found = []
    for mark in _root(cache).glob(f"*/{_MARK}"):
        match = re.match(r"torch-(\d+)\.(\d+)\.(\d+)", mark.parent.name)
        python = mark.parent / "bin" / "python"
        if not match or not python.exists():
            continue
        version = match[0].removeprefix("torch-")
        if torch is None or version == torch or version.startswith(f"{torch}."):
            found.append((tuple(int(part) for part in match.groups()), mark.parent.name, python))
    return max(found)[2] if found else None


def _root(cache: Path | None) -> Path:
    return (cache or default_cache()) / "mirage" / "environments"


def _name(requirement: str) -> str:
    match = _REQUIREMENT.match(requirement)
    return match[0] if match else requirement


def _bare(requirement: str) -> str:
    """A requirement without its marker: what torch needs on this platform is needed anyway."""
    return requirement.split(";")[0].strip()


def _size(url: str) -> int | None:
    """Bytes of a file that pip would fetch."""
    if url.startswith("file:"):
        path = Path(urllib.request.url2pathname(url.removeprefix("file:").removeprefix("//")))
        return path.stat().st_size if path.exists() else None
    if not url.startswith(("https:", "http:")):
        return None
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - http only, by the check above
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return int(answer.headers["Content-Length"])
    except (OSError, TypeError, ValueError):
        return None


def _pip(python: Path, arguments: Sequence[str], *, timeout_s: float) -> str:
    return _run([str(python), "-m", "pip", *arguments, *_connection()], timeout_s, _pip_environment())


def _pip_environment() -> dict[str, str]:
    """The user's environment without configuration files, local folders and constraints."""
    kept = {key: value for key, value in os.environ.items() if key not in _LOCAL_OPTIONS}
    return {**kept, "PIP_CONFIG_FILE": os.devnull}


def _connection() -> list[str]:
    """pip's own configuration of how to reach an index, as options."""
    try:
        shown = _run([sys.executable, "-m", "pip", "config", "list"], _PLAN_TIMEOUT_S)
    except MemfitError:
        return []
    options = {}
    for line in shown.splitlines():
        match = re.fullmatch(r"(?:global|user|site|install)\.([\w-]+)='(.*)'", line.strip())
        if match and match[1] in _CONNECTION and "\\n" not in match[2]:
            options[match[1]] = match[2]
    return [part for key, value in options.items() for part in (f"--{key}", value)]


def _run(command: Sequence[str], timeout_s: float, environment: Mapping[str, str] | None = None) -> str:
    """Standard output of a command.

    Raises:
        MemfitError: it fails or does not end in time.
    """
    what = " ".join(Path(command[0]).name if i == 0 else part for i, part in enumerate(command[:4]))
    try:
        done: subprocess.CompletedProcess[Any] = subprocess.run(
            list(command), capture_output=True, text=True, timeout=timeout_s, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        msg = f"`{what}` did not end within {timeout_s:.0f} s"
        raise MemfitError(msg) from error
    if done.returncode:
        lines = [line for line in str(done.stderr).splitlines() if line.startswith("ERROR:")] or [str(done.stderr)]
        text = "; ".join(line.removeprefix("ERROR:").strip() for line in lines)[-600:]
        if "No module named pip" in text:
            msg = "making an environment needs pip"
            raise MissingError(msg, hint=f"{sys.executable} -m ensurepip")
        msg = f"`{what}` failed: {text}"
        raise MemfitError(msg)
    return str(done.stdout)
