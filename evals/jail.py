"""Run as a program: shuts itself off from network, files and other processes, then becomes the Python program given.

    python -I -S jail.py FOLDER PROGRAM MEMORY_BYTES CPU_SECONDS

Standard library only. Linux: new user, network, process and IPC namespaces, a Landlock rule set that leaves the Python
installation readable and FOLDER writable, and resource limits. Exits with NO_JAIL where the kernel refuses any of it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from pathlib import Path

NO_JAIL = 97
FILE_BYTES = 10_000_000

_NEW_USER, _NEW_PID, _NEW_NET, _NEW_IPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000
_SET_PDEATHSIG, _SET_NO_NEW_PRIVS = 1, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ = 0b1101  # execute, read file, read folder
_WRITABLE_TYPES = 0x1FFF & ~(1 << 6 | 1 << 11)  # everything of ABI 1 but making character and block devices
_OPEN_PATH = 0o10000000


def enter(folder: Path, readable: list[Path], memory: int, seconds: int) -> None:
    """Shut off this process; it returns in a child that is alone in its process namespace.

    Raises:
        OSError: the kernel refuses; the message says which step.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(_NEW_USER | _NEW_PID | _NEW_NET | _NEW_IPC), "namespaces")
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _check(libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "death signal")
    _limit(memory, seconds)
    _check(libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    _restrict_files(libc, folder, readable)


def _limit(memory: int, seconds: int) -> None:
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _restrict_files(libc: ctypes.CDLL, folder: Path, readable: list[Path]) -> None:
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    _check(version, "Landlock")
    files = (1 << (13 + (version >= 2) + (version >= 3))) - 1
    attributes = struct.pack("QQQ", files, 0, 3 if version >= 6 else 0)[
        : 8 if version < 4 else 16 if version < 6 else 24
    ]
    rules = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    _check(rules, "Landlock rule set")
    for path, access in ((folder, _WRITABLE_TYPES | (files & 1 << 14)), *((path, _READ) for path in readable)):
        if path.exists():
            opened = os.open(path, _OPEN_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", access, opened)
            _check(libc.syscall(_ADD_RULE, rules, 1, rule, 0), f"Landlock rule for {path}")
            os.close(opened)
    _check(libc.syscall(_RESTRICT_SELF, rules, 0), "Landlock restriction")
    os.close(rules)


def _check(result: int, step: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")


def _main() -> None:
    folder, program, memory, seconds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    python = Path(sys.executable).resolve()
    readable = [Path(sys.base_prefix).resolve(), *map(Path, ("/usr/lib", "/usr/lib64", "/lib", "/lib64"))]
    try:
        enter(folder, readable, memory, seconds)
        os.chdir(folder)
    except OSError as error:
        print(error, file=sys.stderr)
        os._exit(NO_JAIL)
    os.execve(python, [str(python), "-I", "-S", program], {})  # noqa: S606 - that is its purpose


if __name__ == "__main__":
    _main()
