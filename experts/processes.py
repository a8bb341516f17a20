"""Our own processes on this machine: found again by a mark in their environment, ended by process id."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

MARK = "COLLEGIUM_ENGINES"
READY = "COLLEGIUM_READY_FD"
_PR_SET_PDEATHSIG = 1


def forbid_core_dumps() -> None:
    """A core file would hold prompts and keys; children inherit this."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def raise_file_limit() -> int:
    """As many open files as the system lets us have: each connection is one. Returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def marked(mark: str) -> list[psutil.Process]:
    """Processes of this user whose environment holds `MARK=mark`, this one and its ancestors left out."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in own and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # it ended meanwhile, or belongs to another user
    return found


def started(pid: int) -> int | None:
    """When a process began, in the kernel's ticks since the machine did; None where none of that id runs.

    Together with the process id that names one process: ids are given out again.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def end(find: Callable[[], list[psutil.Process]], patience: float = 10.0) -> list[int]:
    """Ask what `find` finds to end, wait, then kill what is left, until it finds nothing. Returns the process ids.

    psutil compares start times before it signals, so a process id that was given to another process is left alone.
    """
    ended: set[int] = set()
    deadline = time.monotonic() + patience
    asked: set[int] = set()
    while living := find():
        hurry = time.monotonic() > deadline
        for process in living:
            ended.add(process.pid)
            if hurry or process.pid not in asked:
                _signal(process, signal.SIGKILL if hurry else signal.SIGTERM)
                asked.add(process.pid)
        psutil.wait_procs(living, timeout=1.0)
        if time.monotonic() > deadline + patience:
            break
    return sorted(ended)


def die_with_parent(number: signal.Signals = signal.SIGTERM, parent: int | None = None) -> None:
    """Have the kernel send a signal when the thread that started this process ends.

    Where a whole process is killed it often comes several times: its threads end one by one and pass the child on.
    `parent` is the process that started this one, as that has told; it may be gone before this is called.

    Raises:
        SystemExit: it is gone.
    """
    parent = parent or os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        raise SystemExit("the parent process is gone")


def tell_ready() -> None:
    """Tell the process that started this one, if that wants to know, that this one has come up."""
    descriptor = os.environ.pop(READY, None)
    if descriptor is not None:
        os.write(int(descriptor), b"1")
        os.close(int(descriptor))


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return
