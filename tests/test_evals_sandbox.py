"""Generated code: judged by its tests, and shut off from network, files and processes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from collegium.evals.sandbox import Limits, SandboxError, run_tests

QUICK = Limits(seconds=20)


@pytest.fixture(autouse=True)
def _jail_works() -> None:
    try:
        run_tests("", "", QUICK)
    except SandboxError as error:
        pytest.skip(str(error))


def test_right_code_passes_and_wrong_code_says_why() -> None:
    code = "import math\n\ndef area(r):\n    return math.pi * r * r\n"
    assert run_tests(code, "assert round(area(1), 2) == 3.14", QUICK).passed
    wrong = run_tests(code, "assert area(1) == 4, 'area of 1'", QUICK)
    assert not wrong.passed
    assert wrong.reason == "AssertionError: area of 1"


@pytest.mark.parametrize("leave", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit"])
def test_leaving_before_the_tests_is_no_pass(leave: str) -> None:
    assert not run_tests(leave, "assert False", QUICK).passed


def test_it_cannot_reach_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ran = run_tests(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=3)", "", QUICK)
    assert not ran.passed
    assert "unreachable" in ran.reason.lower()


def test_it_cannot_read_or_write_the_users_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    for code in (f"open({str(secret)!r}).read()", f"open({str(secret)!r}, 'w')", "open('/etc/passwd').read()"):
        ran = run_tests(code, "", QUICK)
        assert not ran.passed
        assert "PermissionError" in ran.reason
    assert secret.read_text() == "mine"


def test_it_sees_neither_our_environment_nor_our_processes() -> None:
    assert run_tests("import os", "assert set(os.environ) <= {'LC_CTYPE'}, dict(os.environ)", QUICK).passed
    ran = run_tests(f"import os\nos.kill({os.getpid()}, 0)", "", QUICK)
    assert not ran.passed
    assert "ProcessLookupError" in ran.reason


def test_endless_and_greedy_programs_are_stopped() -> None:
    assert run_tests("while True: pass", "", Limits(seconds=1)).reason == "stopped after 1 s"
    assert "MemoryError" in run_tests("x = bytearray(2 * 1024**3)", "", QUICK).reason
    flood = run_tests("import sys\nwhile True: sys.stderr.write('x' * 100_000)", "", Limits(seconds=10))
    assert not flood.passed
