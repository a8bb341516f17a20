"""One supervisor a state folder: a lock that the kernel drops when its holder dies, and what the holder serves."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self


class AlreadyServingError(RuntimeError):
    """Another `collegium serve` holds the state folder; the message says which and where."""


class ServeLock:
    """Context manager over `serve.lock`; the file's content says who holds it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "serve.lock"
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            holder = serving(self._path.parent) or {}
            raise AlreadyServingError(
                f"{self._path.parent} is served already, by process {holder.get('pid', 'unknown')} at "
                f"{holder.get('endpoint', 'an address it has not told yet')}; stop it with: collegium stop, "
                "or choose another folder with --state"
            ) from error
        self._descriptor = descriptor
        self.tell({"pid": os.getpid()})
        return self

    def tell(self, what: dict[str, object]) -> None:
        """Write down what is served, for `collegium stop` and the second one that tries."""
        if self._descriptor is None:
            raise RuntimeError("the lock is not held")
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(what).encode(), 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def serving(folder: Path) -> dict[str, object] | None:
    """What a living supervisor told of itself, or None where none holds the folder."""
    path = folder / "serve.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            told: dict[str, object] = json.loads(os.pread(descriptor, 65_536, 0))
        except ValueError:
            told = {}
        return told
    finally:
        os.close(descriptor)
    return None
