"""What keys have used, shared by a machine's edge processes: token buckets and running requests in one mapped file.

One fixed slot a key, so that a worker that dies leaves nothing to clean but its own column of running requests. That
counts no more as soon as its process is gone, and its successor clears it. Times are of the monotonic clock, which all
processes of a machine share.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..experts.processes import started

FILE = "limits"  # in the state folder
WORKERS = 64
_SLOTS = 4096
_NAME = struct.Struct("<16s")
_BUCKET = struct.Struct("<dd")  # what is used up, and when that was so
_RUNNING = struct.Struct("<H")
_OWNER = struct.Struct("<QQ")  # the process whose column it is, and when that began
_SLOT = _NAME.size + 2 * _BUCKET.size + WORKERS * _RUNNING.size
_OWNERS = _SLOT * _SLOTS
_SIZE = _OWNERS + WORKERS * _OWNER.size
_ATTEMPTS = 20
_LOOK = 0.25  # seconds for which a process that lived is taken to live


@dataclass(frozen=True, slots=True)
class Reading:
    """A bucket after an attempt to take: `wait` is 0 where it succeeded, else the seconds until it would."""

    wait: float
    remaining: float
    until_full: float


class Counters:
    """Buckets 0 (requests) and 1 (tokens) of each key, and its running requests. `worker` is this process's column."""

    def __init__(self, file: Path | None = None, worker: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """Without `file` they are this process's own.

        Raises:
            ValueError: there is no such column.
        """
        if not 0 <= worker < WORKERS:
            raise ValueError(f"worker is {worker}; it must be from 0 to {WORKERS - 1}")
        self._column = worker
        self._clock = clock
        self._offsets: dict[str, int] = {}
        self._owners: dict[int, tuple[tuple[int, int], bool, float]] = {}
        self._lock: int | None = None
        if file is None:
            self._map = mmap.mmap(-1, _SIZE)
            return
        self._lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._lock, _SIZE)
        self._map = mmap.mmap(self._lock, _SIZE)
        for slot in range(_SLOTS):
            _RUNNING.pack_into(self._map, self._running_at(slot * _SLOT, worker), 0)
        _OWNER.pack_into(self._map, _OWNERS + worker * _OWNER.size, os.getpid(), started(os.getpid()) or 0)

    def close(self) -> None:
        self._map.close()
        if self._lock is not None:
            os.close(self._lock)

    def take(self, key: str, bucket: int, amount: float, per_minute: int) -> Reading:
        """Use `amount` of what refills at `per_minute`; nothing is used where there is not enough.

        An amount of 0 only looks.
        """
        with self._slot(key) as offset:
            at = offset + _NAME.size + bucket * _BUCKET.size
            used, now = self._used(at, per_minute)
            over = used + amount - per_minute
            if over <= 0:
                used += amount
                _BUCKET.pack_into(self._map, at, used, now)
        rate = per_minute / 60
        return Reading(max(over, 0.0) / rate, max(per_minute - used, 0.0), max(used, 0.0) / rate)

    def correct(self, key: str, bucket: int, amount: float, per_minute: int) -> None:
        """Add what was used beyond what was taken, or, where negative, give it back.

        It may leave a debt of a minute's worth, no more: what was used is an expert's word, which may be absurd.
        """
        with self._slot(key) as offset:
            at = offset + _NAME.size + bucket * _BUCKET.size
            used, now = self._used(at, per_minute)
            _BUCKET.pack_into(self._map, at, min(max(used + amount, 0.0), 2 * per_minute), now)

    def begin(self, key: str, limit: int) -> bool:
        """Count one more running request, unless `limit` run already."""
        with self._slot(key) as offset:
            own = self._running_at(offset, self._column)
            if sum(self._columns(offset)) >= limit and self._running(offset) >= limit:
                return False
            _RUNNING.pack_into(self._map, own, _RUNNING.unpack_from(self._map, own)[0] + 1)
            return True

    def end(self, key: str) -> None:
        with self._slot(key) as offset:
            own = self._running_at(offset, self._column)
            _RUNNING.pack_into(self._map, own, max(_RUNNING.unpack_from(self._map, own)[0] - 1, 0))

    def running(self, key: str) -> int:
        with self._slot(key) as offset:
            return self._running(offset)

    def _used(self, at: int, per_minute: int) -> tuple[float, float]:
        now = self._clock()
        used, then = _BUCKET.unpack_from(self._map, at)
        return max(used - (now - then) * per_minute / 60, 0.0) if then <= now else 0.0, now

    def _columns(self, offset: int) -> Iterator[int]:
        start = self._running_at(offset, 0)
        return (count for (count,) in _RUNNING.iter_unpack(self._map[start : start + WORKERS * _RUNNING.size]))

    def _running(self, offset: int) -> int:
        return sum(count for column, count in enumerate(self._columns(offset)) if count and self._lives(column))

    def _lives(self, column: int) -> bool:
        """Whether the column's process is there; looked at now and then, since a busy key asks often."""
        if column == self._column:
            return True
        process, began = _OWNER.unpack_from(self._map, _OWNERS + column * _OWNER.size)
        now = time.monotonic()
        owner, lived, seen = self._owners.get(column, ((0, 0), False, 0.0))
        if owner != (process, began) or (lived and now - seen > _LOOK):
            lived = started(process) == began
            self._owners[column] = ((process, began), lived, now)
        return lived

    @staticmethod
    def _running_at(offset: int, worker: int) -> int:
        return offset + _NAME.size + 2 * _BUCKET.size + worker * _RUNNING.size

    @contextmanager
    def _slot(self, key: str) -> Iterator[int]:
        """The key's place, while no other process changes it."""
        held = self._acquire()
        try:
            offset = self._offsets.get(key)
            if offset is None:
                offset = self._offsets[key] = self._find(hashlib.blake2b(key.encode(), digest_size=16).digest())
            yield offset
        finally:
            if held and self._lock is not None:
                fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def _acquire(self) -> bool:
        """The lock, or not: a process that is stopped while it holds it must not stop the others."""
        if self._lock is None:
            return False
        for _ in range(_ATTEMPTS):
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                time.sleep(0.0001)
        return False

    def _find(self, name: bytes) -> int:
        first = int.from_bytes(name[:4], "little") % _SLOTS
        for step in range(_SLOTS):
            offset = (first + step) % _SLOTS * _SLOT
            (found,) = _NAME.unpack_from(self._map, offset)
            if found == name:
                return offset
            if found == bytes(_NAME.size):
                _NAME.pack_into(self._map, offset, name)
                return offset
        return first * _SLOT  # more keys than slots: two share one
