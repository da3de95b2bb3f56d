"""What is run, and how: the options of a dry run and the variables that carry them into the script's process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memfit.errors import MemfitError
from memfit.mirage.run.hook.memfit_hook.launchers import world

HOOK = Path(__file__).with_name("hook")
"""The folder that is put on the script's module path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How a script is run.

    Attributes:
        command: the command line of the script, e.g. ``("python", "train.py", "--batch", "8")``.
        python: interpreter whose folder stands first on the script's ``PATH``.
        steps: optimizer steps after which the script is ended; 0 lets it run to its own end.
        ranks: processes of the whole job; None for what the launcher says, else one.
        rank: which of them is run.
        gpus_per_node: GPUs that the process sees; None for eight, or fewer where there are fewer ranks.
        fake_weights: checkpoints are answered with sizes only.
        fake_data: datasets are answered with made-up rows of this kind, "" for none.
        moe_imbalance: tokens of the fullest expert over the mean.
        timeout_s: wall-clock limit of the script.
        host_memory_bytes: limit of the memory that the script's processes hold on this machine.
        online: whether model hubs may be contacted.
    """

    command: tuple[str, ...]
    python: Path
    steps: int = 3
    ranks: int | None = None
    rank: int = 0
    gpus_per_node: int | None = None
    fake_weights: bool = False
    fake_data: str = ""
    moe_imbalance: float = 1.0
    timeout_s: float = 1800.0
    host_memory_bytes: int | None = None
    online: bool = False

    def __post_init__(self) -> None:
        if not self.command:
            raise MemfitError("no command is given", hint="memfit dryrun --gpu h100 -- python train.py")
        if self.ranks is not None and not 0 <= self.rank < self.ranks:
            raise MemfitError(f"there is no rank {self.rank}", hint=f"ranks are 0 to {self.ranks - 1}")
        if self.moe_imbalance < 1:
            raise MemfitError("the fullest expert has at least the mean: the imbalance is 1 or more")

    @property
    def num_devices(self) -> int:
        """GPUs that the process sees."""
        return self.gpus_per_node or min(8, self.ranks or 1)

    def words(self) -> list[str]:
        """The command with the script's interpreter in place of ``python``; a bare script gets one."""
        first, *rest = self.command
        if first.endswith(".py"):
            return [str(self.python), *self.command]
        if Path(first).name == first and first in ("python", "python3", f"python3.{self.python.name[8:]}"):
            return [str(self.python), *rest]
        return list(self.command)

    def environment(self, folder: Path, base: Mapping[str, str], card: Mapping[str, str]) -> dict[str, str]:
        """The variables of the child.

        Args:
            folder: where the hooks put their results.
            base: this process's variables.
            card: what ``memfit.mirage.prepare`` says about the imaginary GPU.
        """
        env = {name: value for name, value in base.items() if not name.startswith("MEMFIT_DRYRUN_")}
        env.update(card)
        rest = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
        env["PYTHONPATH"] = os.pathsep.join([str(HOOK), *rest])
        env["PATH"] = os.pathsep.join([str(self.python.parent), env.get("PATH", os.defpath)])
        env.setdefault("PYTHONFAULTHANDLER", "1")
        env.setdefault("PYTHONUNBUFFERED", "1")
        env.setdefault("WANDB_MODE", "disabled")
        env.setdefault("TOKENIZERS_PARALLELISM", "false")
        if not self.online:
            env.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})
        given = {
            "FOLDER": str(folder),
            "PARENT": str(os.getpid()),
            "STEPS": str(self.steps),
            "RANKS": str(self.ranks or 0),
            "RANK": str(self.rank),
            "GPUS_PER_NODE": str(self.num_devices),
            "FAKE_WEIGHTS": "1" if self.fake_weights else "",
            "FAKE_DATA": self.fake_data,
            "MOE_IMBALANCE": str(self.moe_imbalance),
        }
        env.update({f"MEMFIT_DRYRUN_{name}": value for name, value in given.items() if value})
        if self.ranks is not None and self.ranks > 1:
            env.update(world(self.ranks, self.rank, min(self.num_devices, self.ranks)))
        return env
