"""Runs the script's process: output on, limits of time and host memory, and nothing left behind when it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from memfit.errors import MissingError

_TAIL_BYTES = 1 << 16
_LOOK_S = 0.1
_GRACE_S = 5.0
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code, negative for a signal.
        stopped: the limit that ended it, or "".
        tail: the last of what it wrote to its two outputs.
        host_peak_bytes: most memory that it and its children held on this machine, looked at ten times a second.
        seconds: wall-clock time.
    """

    code: int
    stopped: Literal["", "time", "memory"]
    tail: str
    host_peak_bytes: int
    seconds: float

    @property
    def last_lines(self) -> list[str]:
        """The last lines of its output, without empty ones."""
        return [line.rstrip() for line in self.tail.splitlines() if line.strip()][-12:]


def run_child(
    words: Sequence[str],
    env: Mapping[str, str],
    *,
    timeout_s: float,
    host_memory_bytes: int | None,
    echo: Callable[[bytes], None] | None = None,
    folder: Path | None = None,
) -> Ended:
    """Run a command to its end or to a limit; its whole process group is gone afterwards.

    Args:
        words: the command line.
        env: all its variables.
        timeout_s: wall-clock limit.
        host_memory_bytes: limit of resident memory over all its processes; None for none.
        echo: gets its output as it comes.
        folder: where it runs, here unless stated.

    Raises:
        MissingError: the program does not exist or cannot be run.
    """
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            list(words),
            env=dict(env),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MissingError(f"`{words[0][:200]}` cannot be started: {reason}") from error
    assert process.stdout is not None
    tail = bytearray()
    reader = threading.Thread(target=_read, args=(process.stdout, tail, echo), daemon=True)
    reader.start()
    stopped: Literal["", "time", "memory"] = ""
    peak = 0
    try:
        while process.poll() is None:
            held = group_bytes(process.pid)
            peak = max(peak, held)
            if host_memory_bytes is not None and held > host_memory_bytes:
                stopped = "memory"
            elif time.monotonic() - began > timeout_s:
                stopped = "time"
            if stopped:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_S)
    finally:
        _end(process)
    reader.join(_GRACE_S)
    if not reader.is_alive():
        process.stdout.close()
    text = bytes(tail).decode("utf-8", "replace")
    seconds = time.monotonic() - began
    return Ended(code=process.returncode, stopped=stopped, tail=text, host_peak_bytes=peak, seconds=seconds)


def _read(stream: IO[bytes], tail: bytearray, echo: Callable[[bytes], None] | None) -> None:
    while True:
        part = os.read(stream.fileno(), 1 << 16)
        if not part:
            return
        tail += part
        del tail[:-_TAIL_BYTES]
        if echo is not None:
            echo(part)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process group: whatever the script left running ends with it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        if process.poll() is not None:
            continue
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    process.wait()


def group_bytes(group: int) -> int:
    """Resident bytes of all processes of a session, shared pages of files counted once per process; 0 where unknown."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text(encoding="latin-1").rpartition(")")[2].split()
            if int(fields[3]) == group:
                resident, shared = (entry / "statm").read_text(encoding="latin-1").split()[1:3]
                total += (int(resident) - int(shared)) * _PAGE
        except (OSError, ValueError, IndexError):
            continue  # it has ended meanwhile
    return total
