"""Comparing versions: flips by hand, leakage refused, promotion and roll-back through the registry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from collegium.cli.main import main
from collegium.experts.registry import Registry
from collegium.experts.state import StateFolder
from collegium.router.artefact import Router, load_router
from collegium.router.seen import SEEN, seen_rows
from collegium.training.compare import compare, mcnemar, refuse_seen, unseen
from collegium.training.data import DataError, Prompt
from collegium.training.recipes import Options
from collegium.training.train import train
from router_kit import labelled

PROMPTS = [Prompt(row, text, label) for row, (text, label) in enumerate(labelled(), start=1)]
FRESH = [
    ("who inherits when there is no last will", "law"),
    ("my landlord broke the contract", "law"),
    ("the integral of a matrix", "math"),
    ("what is the probability of a prime number", "math"),
    ("python null pointer in a unit test", "coding"),
    ("git rebase broke my css grid", "coding"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A good router, and one that learned math as law and law as math."""
    root = tmp_path_factory.mktemp("versions")
    swapped = {"law": "math", "math": "law", "coding": "coding"}
    wrong = [Prompt(prompt.row, prompt.text, swapped[prompt.label]) for prompt in PROMPTS]
    train(PROMPTS, "tfidf", options=Options(name="good")).save(root / "good")
    train(wrong, "tfidf", options=Options(name="wrong")).save(root / "wrong")
    return root / "good", root / "wrong"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "fresh.jsonl"
    rows = [(f"{text} {i}", label) for i in range(8) for text, label in FRESH]
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


def fresh() -> list[Prompt]:
    return [Prompt(row, text, label) for row, (text, label) in enumerate(FRESH, start=1)]


def routers(folders: tuple[Path, Path]) -> tuple[Router, Router]:
    return load_router(folders[0]), load_router(folders[1])


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["router", *map(str, arguments)])


def test_flips_are_counted_both_ways(folders: tuple[Path, Path]) -> None:
    good, wrong = routers(folders)
    worse, better = compare(good, wrong, fresh()), compare(wrong, good, fresh())
    assert (worse.old_right, worse.new_right, worse.rows) == (6, 2, 6)
    assert (worse.negative_flips, worse.positive_flips) == (4, 0) == (better.positive_flips, better.negative_flips)
    assert worse.negative_flip_rate == pytest.approx(4 / 6) and worse.p_value == pytest.approx(0.125)
    same = compare(good, good, fresh())
    assert same.negative_flips == same.positive_flips == 0 and same.p_value == 1.0


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0 and mcnemar(5, 5) == 1.0
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)


def test_training_prompts_and_near_duplicates_are_refused(folders: tuple[Path, Path]) -> None:
    long = (
        "please explain to me in plain words how a landlord may end the contract of a tenant who is late with the rent"
    )
    trained = train([*PROMPTS, Prompt(99, long, "law")], "tfidf", options=Options(name="long"))
    folder = folders[0].parent / "long"
    trained.save(folder)
    asked = [
        Prompt(1, PROMPTS[0].text.upper() + "!", "coding"),
        Prompt(2, "what is a statute of limitations", "law"),
        Prompt(3, long.replace("the rent", "his rent"), "law"),
        Prompt(4, "explain the landlord", "law"),
    ]
    assert seen_rows(folder, [prompt.text for prompt in asked]).tolist() == [0, 2]
    with pytest.raises(DataError, match=r"2 of 4 rows are training prompts of .*long.* \(first rows: 1, 3\)"):
        refuse_seen([folder], asked)
    assert [prompt.row for prompt in unseen([folder], asked)] == [2, 4]
    assert len(seen_rows(folder, [prompt.text for prompt in PROMPTS])) == len(PROMPTS)


def test_the_sketches_are_checked_like_every_file(folders: tuple[Path, Path], tmp_path: Path) -> None:
    train(PROMPTS, "tfidf").save(tmp_path / "r")
    (tmp_path / "r" / SEEN).unlink()
    with pytest.raises(ValueError, match=r"seen\.safetensors is missing"):
        load_router(tmp_path / "r")


def test_compare_from_the_command_line(folders: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    good, wrong = folders
    found = json.loads(cli("compare", good, wrong, "--data", data, "--json").stdout)
    assert found["rows"] == 48 and found["negative_flips"] == 32 and found["p_value"] < 1e-6
    known = tmp_path / "known.jsonl"
    known.write_text("".join(json.dumps({"text": p.text, "label": p.label}) + "\n" for p in PROMPTS) + data.read_text())
    refused = cli("compare", good, wrong, "--data", known)
    assert refused.exit_code == 1 and "72 of 120 rows are training prompts" in refused.stderr
    dropped = json.loads(cli("compare", good, wrong, "--data", known, "--drop-seen", "--json").stdout)
    assert dropped["rows"] == 48


def test_promote_refuses_negative_flips_and_rollback_returns(
    folders: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    good, wrong = folders
    state = tmp_path / "state"
    registry = Registry(StateFolder(state).registry_url)
    kept = {folder: state / "routers" / load_router(folder).version for folder in folders}
    assert cli("promote", good, "--force", "--state", state).exit_code == 0
    assert registry.active_router() == str(kept[good])
    refused = cli("promote", wrong, "--data", data, "--state", state)
    assert (
        refused.exit_code == 1 and "66.7% of the prompts turn wrong, over 2.0%; nothing was promoted" in refused.stderr
    )
    assert registry.active_router() == str(kept[good])
    assert cli("promote", wrong, "--data", data, "--force", "--state", state).exit_code == 0
    assert registry.active_router() == str(kept[wrong])
    assert str(kept[good]) in cli("rollback", "--state", state).stdout
    assert registry.active_router() == str(kept[good])
    assert cli("promote", wrong, "--state", state).exit_code == 2
    assert cli("promote", tmp_path / "none", "--force", "--state", state).exit_code == 1
    assert cli("rollback", "--state", state).exit_code == 0 and registry.active_router() is None
    assert "nothing was promoted" in cli("rollback", "--state", state).stderr
    assert cli("promote", good, "--force", "--in-place", "--state", state).exit_code == 0
    assert registry.active_router() == str(good)


def test_list_keeps_every_promoted_version(folders: tuple[Path, Path], tmp_path: Path) -> None:
    state = tmp_path / "state"
    mine = tmp_path / "mine"
    shutil.copytree(folders[0], mine)
    first, second = (load_router(folder).version for folder in folders)
    assert [row["active"] for row in json.loads(cli("list", "--json", "--state", state).stdout)] == [True]
    cli("promote", mine, "--force", "--state", state)
    shutil.rmtree(mine)  # what was promoted does not depend on it
    cli("promote", folders[1], "--force", "--state", state)
    cli("rollback", "--state", state)
    rows = json.loads(cli("list", "--json", "--state", state).stdout)
    assert [(row["version"], row["active"], row["problem"]) for row in rows][:2] == [
        (second, False, None),
        (first, True, None),
    ]
    assert rows[0]["kind"] == "tfidf" and 0 < rows[0]["accuracy"] <= 1 and rows[0]["promoted"]
    assert len(rows) == 3 and first in cli("list", "--state", state).stdout
    broken = tmp_path / "all" / "broken"
    shutil.copytree(folders[0], tmp_path / "all" / "good")
    shutil.copytree(folders[0], broken)
    (broken / "head.safetensors").unlink()
    found = json.loads(cli("list", "--folder", tmp_path / "all", "--json", "--state", state).stdout)
    assert [(Path(row["path"]).name, row["active"]) for row in found] == [("broken", False), ("good", True)]
    assert "head.safetensors is missing" in found[0]["problem"]
    assert "head.safetensors is missing" in cli("list", "--folder", tmp_path / "all", "--state", state).stdout


def test_a_label_that_neither_knows_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text('{"text": "sue them", "label": "law"}\n{"text": "bake a cake", "label": "cooking"}\n')
    refused = cli("compare", *folders, "--data", path)
    assert refused.exit_code == 1 and "row 2: label 'cooking' is none of coding, law, math" in refused.stderr


def test_show_says_what_a_router_is(folders: tuple[Path, Path]) -> None:
    shown = cli("show", folders[0]).stdout
    assert "kind tfidf" in shown and "law: 24 training rows" in shown
    assert json.loads(cli("show", folders[0], "--json").stdout)["kind"] == "tfidf"
    assert cli("show", folders[0].parent).exit_code == 1
