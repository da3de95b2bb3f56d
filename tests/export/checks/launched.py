"""Runs a script (PATH ...) or a module (-m NAME ...) as the main program, then leaves without ending process groups.

A process that frees a process group of gloo holds the interpreter's lock while it waits for the group's threads, and
one of them may be waiting for the same lock to free the last collective's tensor: torch 2.13 on CPUs hangs now and then
when a DDP model goes out of scope or the group is destroyed. What is checked here has been printed by then.
"""

import os
import runpy
import sys
from pathlib import Path

import torch.distributed
from torch.nn.parallel import DistributedDataParallel

held = []
initialise = DistributedDataParallel.__init__


def hold(self: DistributedDataParallel, *words: object, **named: object) -> None:
    held.append(self)
    initialise(self, *words, **named)


def leave(*_: object, **__: object) -> None:
    """The group ends with the process."""


DistributedDataParallel.__init__ = hold
torch.distributed.destroy_process_group = leave
_, *sys.argv = sys.argv
if sys.argv[0] == "-m":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
