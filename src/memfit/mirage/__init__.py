"""The imaginary GPU: the unmodified CUDA build of PyTorch on CUDA libraries that keep accounts and execute nothing.

``prepare`` answers with the environment variables under which a Python of the user's sees GPUs of memfit's catalog:
their names, properties and memory are real, device memory is a number, kernels do not run. The caching allocator, the
choice of kernels and every out-of-memory error are PyTorch's own.

    environment = prepare(Path("venv/bin/python"), lookup_gpu("h100"), count=1)
    subprocess.run(["venv/bin/python", "train.py"], env={**os.environ, **environment})

The libraries are C sources of memfit's own (``native/``), built once per PyTorch build with the system C compiler and
cached. ``settings`` documents every variable that they read.
"""

from __future__ import annotations

from memfit.mirage.machine import check_machine, default_cache
from memfit.mirage.prepare import prepare
from memfit.mirage.settings import Imaginary
from memfit.mirage.torchbuild import TorchBuild, inspect_python

__all__ = ["Imaginary", "TorchBuild", "check_machine", "default_cache", "inspect_python", "prepare"]
