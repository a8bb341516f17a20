"""docs/faults.md names every row of the catalogue once, and tests that exist."""

from __future__ import annotations

from faults.rows import COUNTS, HOW, functions, rows


def test_no_row_is_missing_and_none_stands_twice() -> None:
    wanted = [f"{letter}{number:02}" for letter, count in COUNTS.items() for number in range(1, count + 1)]
    assert [row.id for row in rows()] == wanted
    assert len(wanted) == 145


def test_each_test_that_is_named_exists() -> None:
    named = {test for row in rows() for test in row.tests}
    missing = [(row.id, file.name, name) for row in rows() for file, name in row.tests if not file.is_file()]
    assert not missing
    known = {file: functions(file) for file, _ in named}
    assert not [(row.id, file.name, name) for row in rows() for file, name in row.tests if name not in known[file]]


def test_what_is_tested_names_tests_and_what_is_not_says_why() -> None:
    for row in rows():
        assert row.how in HOW, row.id
        assert row.tests if row.how == "tested" else row.why, row.id
