"""What README and docs point to is there: files, tests, commands of the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from collegium.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [one for one in targets if "://" not in one and not (page.parent / one).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_and_scripts_that_are_named_exist(page: Path) -> None:
    named = re.findall(
        r"\b((?:tests|benchmarks|serve|experts|router|training|evals|cli)/[\w/]+\.py)\b", page.read_text()
    )
    assert not [one for one in named if not (ROOT / one).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_shown_exist(page: Path) -> None:
    shown = re.findall(r"(?:^\$? *|`)collegium +([a-z-]+)", page.read_text(), re.MULTILINE)
    assert set(shown) <= {*COMMANDS}
