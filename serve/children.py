"""A child process that is kept alive: started, logged to a file, restarted with back-off, ended."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from ..experts.processes import READY

LOG_LIMIT = 10 * 1024 * 1024  # bytes; an older log is kept once, as *.1
STEADY = 5.0  # seconds after which a child's back-off begins anew
_LONGEST, _LONGEST_READY = 10.0, 1.0


class Child:
    """Runs `command` until `stop()`; a child that dies is started again after 0.1 s.

    Where it dies within STEADY of its start that doubles, up to 10 s, or 1 s where it had come up (tell_ready): what
    kills it then is more likely outside, and clients wait.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        report: Callable[[str], None],
        inherited: Sequence[int] = (),
        look: float = 30.0,
    ) -> None:
        """Every `look` seconds its log is looked at."""
        self.name = name
        self._command = list(command)
        self._log = log
        self._environment = dict(environment)
        self._report = report
        self._inherited = tuple(inherited)
        self._look = look
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    async def run(self) -> None:
        """Keep the child alive until `stop()`."""
        wait = 0.1
        while not self._stopping:
            started = time.monotonic()
            code, ready = await self._run_once()
            if self._stopping:
                return
            steady = time.monotonic() - started > STEADY
            wait = 0.1 if steady else min(wait * 2, _LONGEST_READY if ready else _LONGEST)
            self._report(f"{self.name} ended with code {code}; starting it again in {wait:.1f} s (see {self._log})")
            await asyncio.sleep(wait)

    async def _run_once(self) -> tuple[int, bool]:
        """Its exit code, and whether it had come up."""
        _rotate(self._log)
        with self._log.open("ab") as log, _pipe() as (told, tells):
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self._environment, READY: str(tells.fileno())},
                pass_fds=(*self._inherited, tells.fileno()),
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which ends its children in order
            )
            tells.close()
            return await self._watched(self._process), bool(told.read(1))

    async def _watched(self, process: asyncio.subprocess.Process) -> int:
        """Its exit code; its log is kept small meanwhile."""
        ended = asyncio.create_task(process.wait())
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=self._look)
                if not ended.done():
                    await asyncio.to_thread(_shorten, self._log)
        finally:
            ended.cancel()
        return ended.result()

    async def stop(self, patience: float) -> None:
        """SIGTERM, and SIGKILL after `patience` seconds."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), patience)
        except TimeoutError:
            self._report(f"{self.name} did not end within {patience:g} s; killing it")
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@contextmanager
def _pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """A pipe to read from, without waiting, and to write to."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with FileIO(reading) as told, FileIO(writing, "w") as tells:
        yield told, tells


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.replace(_older(log))


def _shorten(log: Path) -> None:
    """As _rotate, while a process holds the file open for appending; lines written during the copy may be lost."""
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        shutil.copyfile(log, _older(log))
        os.truncate(log, 0)


def _older(log: Path) -> Path:
    return log.with_name(f"{log.name}.1")
