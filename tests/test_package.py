"""The shape of the repository: packages, one-way imports, what is banned, what an import may cost."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("router", "experts", "training", "serve", "evals", "cli")
MAY_USE = {
    "router": {"router"},
    "experts": {"experts"},
    "training": {"training", "router", "experts"},
    "serve": {"serve", "router", "experts"},
    "evals": {"evals", "router", "experts"},
    "cli": set(PARTS),
}
MODULES = sorted(path for part in PARTS for path in (ROOT / part).glob("*.py"))


def test_the_packages_list_names_the_folders() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(listed) == {f"collegium.{folder}" for folder in folders} == {f"collegium.{part}" for part in PARTS}


def test_the_typing_links_lead_to_the_folders() -> None:
    for part in PARTS:
        assert (ROOT / ".typings" / "collegium" / part).resolve() == ROOT / part


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    part = path.parent.name
    for target in _own_imports(path):
        assert target in MAY_USE[part], f"{path.relative_to(ROOT)} imports {target}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unsafe_or_overlong(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says its purpose in its first line"
    assert text.count("\n") <= 330, "split the module"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} | {
                (getattr(node, "module", "") or "").split(".")[0]
            }
            assert not names & {"pickle", "joblib", "dill", "cloudpickle", "marshal"}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("torch", "load")
        if isinstance(node, ast.keyword):
            assert node.arg != "trust_remote_code" or not getattr(node.value, "value", True)
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name):
            translated = isinstance(node.body[-1], ast.Raise)
            everything = node.type.id in ("Exception", "BaseException")
            assert translated or not everything, f"line {node.lineno} catches everything"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("collegium.cli.main", {"torch", "ray", "numpy", "starlette", "sqlalchemy", "rich", "pydantic"}),
        ("collegium.router.artefact", {"torch", "ray", "sentence_transformers", "httpx2"}),
        ("collegium.serve.edge", {"ray", "vllm"}),
        ("collegium.serve.supervisor", {"ray", "vllm", "torch"}),
        ("collegium.experts.reconciler", {"ray", "vllm", "torch"}),
    ],
)
def test_importing_is_cheap(module: str, unwanted: set[str]) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not unwanted & set(json.loads(loaded))


def _own_imports(path: Path) -> Iterator[str]:
    """The parts of collegium that a module imports from."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name.split(".")[0] not in PARTS, "import from the package, not from the bare folder"
                if alias.name.startswith("collegium."):
                    yield alias.name.split(".")[1]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 1:
                yield path.parent.name
            elif node.level == 2:
                yield from [module.split(".")[0]] if module else [alias.name for alias in node.names]
            elif module.startswith("collegium."):
                yield module.split(".")[1]
