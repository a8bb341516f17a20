"""Do the tests notice? `python tests/mutate.py [retry sse ...]`, with `pip install cosmic-ray`.

Changes one operator of a module after another in a copy of what is committed, runs the module's tests each time, and
prints the changes that they let pass. Left out: annotations (`X | None`), what makes no sense in its place, and what is
no Python any more (`{-values, "model": name}`).
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULES = {
    "retry": ("serve/retry.py", "test_edge_retry.py"),
    "breaker": ("serve/breaker.py", "test_edge_retry.py"),
    "sse": ("serve/sse.py", "test_serve_sse.py"),
    "streams": ("serve/streams.py", "test_serve_sse.py test_edge_transcript.py"),
    "transcript": ("serve/transcript.py", "test_edge_transcript.py"),
    "registry": ("experts/registry.py", "test_experts_registry.py"),
}
# An endless loop is ended, and so noticed, by pytest's own timeout. What is still running after this one was not looked
# at: a busy machine must not pass for a test.
_CONFIG = """[cosmic-ray]
module-path = "{module}"
timeout = 900.0
excluded-modules = []
test-command = "{python} -m pytest -q -x -p no:cacheprovider {tests}"
[cosmic-ray.distributor]
name = "local"
[cosmic-ray.filters.operators-filter]
exclude-operators = [
  "core/ReplaceBinaryOperator_BitOr_.*",
  "core/ReplaceBinaryOperator_.*_(Pow|FloorDiv|Mod|LShift|RShift|BitOr|BitAnd|BitXor)",
  "core/ReplaceComparisonOperator_.*_(Is|IsNot)", "core/ReplaceComparisonOperator_(Is|IsNot)_(Lt|LtE|Gt|GtE|Eq|NotEq)",
  "core/NumberReplacer",
]
"""
_NOTICED = """select count(*) from work_results
where test_outcome in ('KILLED', 'INCOMPETENT') and output != 'timeout' and output not like '%SyntaxError%'"""
_PASSED = """select start_pos_row, operator_name from mutation_specs s join work_results w on s.job_id = w.job_id
where test_outcome = 'SURVIVED' or output = 'timeout' order by start_pos_row"""


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in MODULES]:
        print(f"there is no {unknown[0]!r}; there are: {', '.join(MODULES)}", file=sys.stderr)
        return 2
    if shutil.which("cosmic-ray") is None:
        print("cosmic-ray is not on PATH; pip install cosmic-ray", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(copy)], check=True)
        (Path(folder) / "path").mkdir()
        (Path(folder) / "path" / "collegium").symlink_to(copy)  # before the installed one
        for name in names or MODULES:
            _mutate(name, Path(folder), copy)
    return 0


def _mutate(name: str, folder: Path, copy: Path) -> None:
    module, tests = MODULES[name]
    config, session = folder / f"{name}.toml", folder / f"{name}.sqlite"
    named = " ".join(f"tests/{one}" for one in tests.split())
    config.write_text(_CONFIG.format(module=module, python=sys.executable, tests=named))
    environment = {**os.environ, "PYTHONPATH": str(folder / "path")}
    for command in (
        ["cosmic-ray", "init", str(config), str(session)],
        ["cr-filter-operators", str(session), str(config)],
        ["cosmic-ray", "exec", str(config), str(session)],
    ):
        subprocess.run(command, cwd=copy, env=environment, check=True, stderr=subprocess.DEVNULL)
    with sqlite3.connect(session) as results:
        (noticed,) = results.execute(_NOTICED).fetchone()
        passed = results.execute(_PASSED).fetchall()
    lines = (copy / module).read_text().splitlines()
    print(f"{module}: {noticed} of {noticed + len(passed)} changes noticed", flush=True)
    for row, operator in passed:
        print(f"  {row}: {operator.removeprefix('core/')}: {lines[row - 1].strip()}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
