"""Judge generated code by running it with its tests, without network, the user's files or other processes in reach."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import jail


class SandboxError(RuntimeError):
    """This machine cannot shut generated code off, so it is not run."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one program: wall seconds, bytes of address space."""

    seconds: float = 10.0
    memory: int = 512 * 1024**2


@dataclass(frozen=True, slots=True)
class Ran:
    """Whether every test passed, and the last line of what went wrong."""

    passed: bool
    reason: str


def run_tests(code: str, tests: str, limits: Limits = Limits()) -> Ran:
    """Run `code`, then `tests`, in one program of its own.

    It passed only when it came to its end: a program that leaves early, even with exit code 0, did not.

    Raises:
        SandboxError: the kernel lacks user namespaces or Landlock.
    """
    with tempfile.TemporaryDirectory(prefix="collegium-code-") as name:
        folder, token = Path(name), secrets.token_hex(16)
        end = f"\nwith open('end', 'w') as _file:\n    _file.write({token!r})\n"
        (folder / "program.py").write_text(f"{code}\n{tests}\n{end}", encoding="utf-8", errors="replace")
        status = _run(folder, limits)
        if status is None:
            return Ran(False, f"stopped after {limits.seconds:g} s")
        words = (folder / "stderr").read_bytes()[-2000:].decode("utf-8", "replace").strip()
        if status == jail.NO_JAIL:
            raise SandboxError(f"generated code cannot be shut off on this machine ({words}); it was not run")
        end_file = folder / "end"
        passed = status == 0 and end_file.is_file() and end_file.read_bytes()[:64] == token.encode()
        last = words.splitlines()[-1][:300] if words else f"ended early with exit code {status}"
        return Ran(passed, "" if passed else last)


def _run(folder: Path, limits: Limits) -> int | None:
    """Exit status, or None when time was up."""
    python = os.path.realpath(sys.executable)
    command = [
        python,
        "-I",
        "-S",
        jail.__file__,
        str(folder),
        "program.py",
        str(limits.memory),
        str(int(limits.seconds) + 1),
    ]
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env={}, start_new_session=True
        )
        try:
            return process.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.kill()  # its namespace dies with it
            process.wait()
