"""A class by example: routable at once, old routes stay, and removal gives back the very same artefact."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from collegium.cli.main import main
from collegium.router.artefact import ArtefactError, load_router
from collegium.router.calibration import Floats
from collegium.router.decision import Policy, decide
from collegium.router.extension import Extension
from collegium.router.manifest import Manifest, read_artefact, write_artefact
from collegium.router.ngrams import unit
from collegium.router.seen import seen_rows
from collegium.router.skills import candidate
from collegium.training.data import DataError, Prompt
from collegium.training.extend import extend, remove_label
from collegium.training.prototypes import place
from collegium.training.recipes import Options
from collegium.training.train import train
from router_kit import labelled
from serve_kit import running, specialist

COOKING = [
    f"{verb} {dish}"
    for verb in ("recipe for baking", "how long to bake", "oven temperature for baking", "how do i bake")
    for dish in ("sourdough bread", "apple pie", "chocolate cake", "oat cookies", "cheese scones")
]
TRAVEL = [
    f"{ask} {place}"
    for ask in (
        "cheap flights and a hotel in",
        "which hotel in",
        "train or flights to",
        "is a visa needed for flights to",
    )
    for place in ("lisbon", "kyoto", "oslo", "lima", "cairo")
]
ASKED = ["how do i bake rye bread in the oven", "baking a cheese cake", "a flight to madrid and a hotel"]
OLD = [text for text, _ in labelled()]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routers") / "base"
    prompts = [Prompt(row, text, label) for row, (text, label) in enumerate(labelled(), start=1)]
    train(prompts, "tfidf", options=Options(name="base")).save(folder)
    return folder


@pytest.fixture(scope="module")
def extended(base: Path) -> Path:
    folder = base.parent / "cooking"
    extend(base, "cooking", COOKING, OLD).save(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(path: Path, texts: Sequence[str], **more: str) -> Path:
    path.write_text("".join(json.dumps({"text": text, **more}) + "\n" for text in texts))
    return path


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["router", *map(str, arguments)])


def test_a_new_class_is_routable_at_once_and_old_posteriors_stay(base: Path, extended: Path) -> None:
    old, new = load_router(base), load_router(extended)
    assert new.labels == ("coding", "cooking", "law", "math")
    assert [new.posterior(text).domain for text in ASKED[:2]] == ["cooking", "cooking"]
    same = 0
    for text in [*OLD, "", "\ud800"]:
        before, after = old.posterior(text).as_dict(), new.posterior(text).as_dict()
        assert abs(sum(after.values()) - 1) < 1e-9
        share = 1 - after.pop("cooking")
        assert after == pytest.approx({label: share * p for label, p in before.items()})
        same += after == before
    assert same >= len(OLD) + 1
    assert new.threshold == old.threshold and new.manifest.parent == old.version
    assert new.manifest.data.rows["cooking"] == len(COOKING)


def test_extensions_stack_and_each_can_be_removed(base: Path, extended: Path, tmp_path: Path) -> None:
    travel, both = tmp_path / "travel", tmp_path / "both"
    extend(base, "travel", TRAVEL, OLD).save(travel)
    extend(extended, "travel", TRAVEL, OLD).save(both)
    routed = [load_router(both).posterior(text).domain for text in ASKED]
    assert routed == ["cooking", "cooking", "travel"]
    assert remove_label(both, "travel", tmp_path / "less").version == load_router(extended).version
    assert files(tmp_path / "less") == files(extended)
    remove_label(tmp_path / "less", "cooking", tmp_path / "less")
    assert files(tmp_path / "less") == files(base)
    assert remove_label(both, "cooking", tmp_path / "other").labels == ["coding", "law", "math", "travel"]
    remove_label(travel, "travel", travel)
    assert files(travel) == files(base)


def test_an_expert_of_the_new_class_gets_its_prompts(extended: Path) -> None:
    experts = [
        candidate("general", declared={}, default_skill=0.6, generalist=True),
        candidate("cook", declared={"cooking": 0.9}, default_skill=0.3, admitted={"cooking"}),
    ]
    router = load_router(extended)
    assert decide(router.posterior(ASKED[0]), experts, Policy()).expert == "cook"
    assert decide(router.posterior("explain the landlord contract"), experts, Policy()).expert == "general"


def test_the_edge_serves_an_extended_router(extended: Path, tmp_path: Path) -> None:
    with running(tmp_path, router=load_router(extended)) as edge:
        edge.pool.add(specialist("cook", edge.echo.url, "cooking"))
        while "cook" not in {model["id"] for model in edge.get("/v1/models").json()["data"]}:
            time.sleep(0.02)
        answer = edge.chat(ASKED[0])
        assert answer.json()["model"] == "cook" and answer.headers["x-collegium-domain"] == "cooking"
        assert edge.chat("explain the landlord contract").headers["x-collegium-expert"] != "cook"


def test_examples_count_as_seen(base: Path, extended: Path) -> None:
    assert seen_rows(extended, [COOKING[3], OLD[5], "is soup a meal"]).tolist() == [0, 1]
    assert seen_rows(base, [COOKING[3]]).tolist() == []


def test_few_or_like_examples_are_warned_of(base: Path) -> None:
    alike = extend(base, "cooking", ["bake a cake", "Bake a cake!"], OLD).report
    assert "all examples are near-duplicates of one; give different ones" in alike.warnings
    one = extend(base, "cooking", ["bake a cake"], OLD).report
    assert one.warnings[0].startswith("1 different example tell") and one.held_out == len(OLD)
    assert any("held-out prompts tell little" in warning for warning in one.warnings)


@pytest.mark.parametrize(
    ("label", "examples", "old", "sentence"),
    [
        ("Law", COOKING, OLD, "has the label 'law' already"),
        (" law2", COOKING, OLD, "must be 1 to 100 printable characters"),
        ("cooking", [], OLD, "there is no example of 'cooking'"),
        ("cooking", ["", "\u200b"], OLD, "there is no example of 'cooking'"),
        ("cooking", COOKING, [], "no held-out prompts"),
        ("cooking", OLD[::7], OLD, "lie among the prompts of other labels"),
    ],
)
def test_what_cannot_be_added_is_refused(
    base: Path, label: str, examples: list[str], old: list[str], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        extend(base, label, examples, old)


def test_from_the_command_line(base: Path, tmp_path: Path) -> None:
    examples = lines(tmp_path / "examples.jsonl", COOKING)
    old = lines(tmp_path / "old.jsonl", OLD, label="law")
    lines(tmp_path / "other.jsonl", TRAVEL, label="travel")
    out = tmp_path / "out"
    done = cli("extend", base, "--label", "cooking", "--examples", examples, "--held-out", old, "--out", out, "--json")
    found = json.loads(done.stdout)
    assert found["reached"] > 0.5 and found["changed"] <= 0.01 and found["held_out"] == len(OLD)
    assert load_router(out).version == found["version"]
    shown = cli("extend", out, "--label", "travel", "--examples", tmp_path / "other.jsonl", "--out", tmp_path / "two")
    assert shown.exit_code == 0 and "held-out prompts of the old labels may change" in shown.stdout
    removed = cli("remove-label", out, "--label", "cooking", "--out", out)
    assert load_router(base).version in removed.stdout and files(out) == files(base)
    for arguments, sentence in (
        (["remove-label", out, "--label", "law", "--out", out], "was not added"),
        (["extend", out, "--label", "law", "--examples", examples, "--out", out], "has the label 'law' already"),
        (["extend", out, "--label", "x", "--examples", examples, "--out", tmp_path], "exists and is no router"),
        (["extend", out, "--label", "x", "--examples", out, "--out", out], "holds no file of"),
    ):
        refused = cli(*arguments)
        assert refused.exit_code == 1 and sentence in refused.stderr and "Traceback" not in refused.output
    assert files(out) == files(base)


def test_a_changed_base_or_extension_is_refused(extended: Path, tmp_path: Path) -> None:
    manifest, tensors = read_artefact(extended)
    head = np.array(tensors["base"])
    head[-1] ^= 1
    records = [{"label": "cooking", "gate": 0.0, "slope": 1.0}]
    for fields, changed, sentence in (
        ({}, {"base": head}, "its base base-.* is not whole"),
        ({}, {"0.offsets": np.zeros(1, np.float32)}, "has shape"),
        ({"settings": {**manifest.settings, "extensions": records}}, {}, "extension 0 needs a label, gate"),
        ({"settings": {**manifest.settings, "extensions": []}}, {}, "names its extensions"),
        ({"settings": {}}, {}, "its base has no manifest"),
        ({"labels": ["coding", "law", "math", "sport"]}, {}, "its labels are not its base's and its extensions'"),
    ):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        whole = Manifest.model_validate({**manifest.model_dump(), **fields, "self_test": []})
        write_artefact(tmp_path / "bad", whole, {**tensors, **changed}, {})
        with pytest.raises(ArtefactError, match=sentence):
            load_router(tmp_path / "bad")


def test_the_gate_lets_through_as_many_as_were_allowed() -> None:
    rng = np.random.default_rng(1)
    centres = np.eye(16)[:4] * 3

    def drawn(which: int, count: int) -> Floats:
        return unit(centres[which] + rng.normal(size=(count, 16)))

    old, routes = np.vstack([drawn(k, 400) for k in range(3)]), np.repeat(np.arange(3), 400)
    placed = place("new", drawn(3, 32), old, routes, 3, 0.005)
    fresh_old, fresh_new = np.vstack([drawn(k, 2_000) for k in range(3)]), drawn(3, 500)
    gate = placed.extension.gate
    assert np.sum(placed.old > gate) == 6
    assert np.mean(placed.extension.margin(fresh_old) > gate) < 0.01
    assert np.mean(placed.extension.margin(fresh_new) > gate) > 0.8
    odds = [placed.extension.odds(vector) for vector in fresh_new]
    assert np.mean(np.array(odds) > 1) > 0.8


def test_odds_by_hand() -> None:
    prototypes = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, -1.0]], np.float32)
    extension = Extension("new", prototypes, np.array([0.0, 0.5, 0.0], np.float32), gate=1.0, slope=2.0, shift=-3.0)
    assert extension.margin(np.array([[1.0, 0.0], [0.6, -0.8]])).tolist() == pytest.approx([1.5, 0.4])
    assert extension.odds(np.array([1.0, 0.0])) == pytest.approx(1.0) and extension.odds(np.array([0.6, -0.8])) == 0.0
