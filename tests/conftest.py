"""Options of the whole suite.

`--repeat N` runs every test that takes a `seed` with N seeds, `--size` sizes long tests and `--minutes` the soak,
`--leaks` searches what was written.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--repeat", type=int, default=1, help="seeds for each test that takes a seed")
    parser.addoption("--size", type=int, help="how many requests, streams, seconds or kills a long test makes")
    parser.addoption("--minutes", type=float, default=2.0, help="how long the soak sends requests")
    parser.addoption("--first-seed", type=int, default=0, help="the first of the seeds")
    parser.addoption("--leaks", action="store_true", help="log everything, and search all that was written (leaks.py)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("leaks"):
        config.pluginmanager.import_plugin("leaks")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        first = metafunc.config.getoption("first_seed")
        metafunc.parametrize("seed", range(first, first + metafunc.config.getoption("repeat")), scope="function")
