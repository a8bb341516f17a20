"""The report of a real tiny router: figures by hand, pages that hold no script, refusals, several routers at once."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from collegium.cli.main import main
from collegium.router.artefact import load_router
from collegium.training.augment import PERTURBATIONS
from collegium.training.data import DataError, Prompt
from collegium.training.measure import RouterReport, measure
from collegium.training.metrics import share
from collegium.training.nearest import nearest
from collegium.training.novelty import auroc
from collegium.training.report import percent, write_report
from collegium.training.robustness import robustness
from report_kit import fresh, known, trained, write_prompts

HOSTILE = '<script>alert("x")</script> $E=mc^2$ $body &amp; divorce'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("routers") / "tiny"
    trained().save(place)
    return place


@pytest.fixture(scope="module")
def asked() -> list[Prompt]:
    """Prompts that were not seen; one is labelled wrongly and looks like an attack on the page."""
    return [*fresh(), Prompt(999, HOSTILE, "math", "<b>source</b>$")]


@pytest.fixture(scope="module")
def report(folder: Path, asked: list[Prompt]) -> RouterReport:
    return measure(folder, asked, trained_on=known())


def test_figures_agree_with_the_router_asked_one_by_one(
    folder: Path, asked: list[Prompt], report: RouterReport
) -> None:
    router = load_router(folder)
    found = [router.posterior(prompt.text) for prompt in asked]
    right = [one.domain == prompt.label for one, prompt in zip(found, asked, strict=True)]
    assert report.accuracy.value == pytest.approx(np.mean(right)) and report.rows == len(asked) > 60
    assert report.routed.value == pytest.approx(np.mean([not one.abstained for one in found]))
    table = np.array(report.confusion)
    assert table.sum() == len(asked) and np.trace(table) == sum(right)
    for k, row in enumerate(report.domains):
        assert row.rows == table[k].sum() and row.recall.value == table[k, k] / table[k].sum()
        assert row.precision.value == table[k, k] / table[:, k].sum()
    assert sum(item.right.rows for item in report.reliability) == len(asked)
    last = report.coverage[-1]
    assert last.coverage == 1.0 and last.accuracy == pytest.approx(np.mean(right))
    coverages = [point.coverage for point in report.coverage]
    assert coverages == sorted(coverages)


def test_sources_are_told_apart_hardest_first(report: RouterReport) -> None:
    worst = report.sources[0]
    assert worst.source == "<b>source</b>$" and worst.accuracy.value == 0.0 and worst.taken_for == "law"
    assert sum(row.accuracy.rows for row in report.sources) == report.rows
    values = [row.accuracy.value or 0.0 for row in report.sources]
    assert values == sorted(values)


def test_mistakes_show_the_nearest_training_prompts(folder: Path, report: RouterReport) -> None:
    mistake = next(one for one in report.mistakes if one.text == HOSTILE)
    assert (mistake.label, mistake.predicted) == ("math", "law") and len(mistake.neighbours) == 3
    classifier = load_router(folder).classifier
    vectors = {prompt.text: classifier.vector(classifier.prepare(prompt.text)) for prompt in known()}
    own = classifier.vector(classifier.prepare(HOSTILE))
    cosines = sorted((float(vector @ own) for vector in vectors.values()), reverse=True)
    assert [one.similarity for one in mistake.neighbours] == pytest.approx(cosines[:3])
    assert float(vectors[mistake.neighbours[0].text] @ own) == pytest.approx(cosines[0])
    surest = [one.confidence for one in report.mistakes]
    assert surest == sorted(surest, reverse=True)


def test_a_prompt_is_its_own_nearest(folder: Path) -> None:
    trained_on = known()[:30]
    found = nearest(load_router(folder).classifier, [trained_on[4].text], trained_on, 2)[0]
    assert found[0].text == trained_on[4].text and found[0].similarity == pytest.approx(1.0)
    assert nearest(load_router(folder).classifier, [], trained_on, 2) == []


def test_robustness_counts_flips_of_what_was_changed(folder: Path, asked: list[Prompt]) -> None:
    classifier = load_router(folder).classifier
    assert {row.perturbation for row in robustness(classifier, asked)} == set(PERTURBATIONS)
    other = {"law": "python unit test", "math": "last will and divorce", "coding": "integral of a matrix"}
    swap = {"swap": lambda text, rng: next(new for key, new in other.items() if key in text), "none": lambda t, r: t}
    prompts = [Prompt(1, "contract law", "law"), Prompt(2, "prime number math", "math"), Prompt(3, "git coding", "law")]
    swapped, unchanged = robustness(classifier, prompts, perturbations=swap)
    assert (swapped.flips.value, swapped.flips.rows) == (1.0, 3)
    assert swapped.before.value == pytest.approx(2 / 3) and swapped.after.value == 0.0
    assert unchanged.flips.rows == 0 and unchanged.flips.value is None
    assert robustness(classifier, asked, 5) == robustness(classifier, asked, 5)


def test_shares_have_wilsons_interval() -> None:
    found = share(np.array([True] * 8 + [False] * 2))
    assert (found.value, found.rows) == (0.8, 10)
    assert found.low == pytest.approx(0.4902, abs=1e-4) and found.high == pytest.approx(0.9433, abs=1e-4)
    assert percent(found, True) == "80.0 (49.0-94.3)" and percent(share(np.array([], dtype=bool))) == "-"
    assert share(np.ones(5, bool)).high == 1.0


def test_auroc_by_hand() -> None:
    scores, positive = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True])
    assert auroc(scores, positive) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert auroc(scores, np.ones(4, bool)) is None


def test_the_page_is_whole_and_escapes_what_prompts_say(report: RouterReport, tmp_path: Path) -> None:
    page = write_report([report], tmp_path, "collegium router report '<x>'").read_text()
    assert "<script" not in page and "&lt;script&gt;alert" in page and "<b>source" not in page
    assert not re.search(r'(src|href)="(?!#|data:image/png)', page) and "url(http" not in page and "@import" not in page
    for text in ("What is taken for what", "Robustness", "Novelty", "Calibration", "repeat it"):
        assert text in page
    assert "&#x27;&lt;x&gt;&#x27;" in page and f"{percent(report.accuracy, True)} %" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert ids and len(ids) == len(set(ids))
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == [
        "confusion.png", "coverage.png", "domains.png", "reliability.png", "robustness.png", "sources.png",
    ]  # fmt: skip
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_the_same_report_is_the_same_page(report: RouterReport, tmp_path: Path) -> None:
    first, again = (write_report([report], tmp_path / name, "x").read_bytes() for name in "ab")
    assert first == again


def test_long_prompts_are_cut_and_no_mistakes_are_said(report: RouterReport, tmp_path: Path) -> None:
    mistake = replace(report.mistakes[0], text="very long " * 1_000)
    page = write_report([replace(report, mistakes=(mistake,))], tmp_path, "x").read_text()
    assert page.count("very long ") == 50
    assert "<p>None.</p>" in write_report([replace(report, mistakes=(), sources=())], tmp_path, "x").read_text()


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["router", *map(str, arguments)])


def test_report_from_the_command_line(folder: Path, asked: list[Prompt], report: RouterReport, tmp_path: Path) -> None:
    data = write_prompts(tmp_path / "asked.jsonl", asked)
    out = tmp_path / "out"
    both = cli("report", folder, folder, "--data", data, "--out", out, "--cache", tmp_path / "cache", "--json")
    assert both.exit_code == 0, both.output
    first, second = json.loads(both.stdout)
    assert first["accuracy"] == second["accuracy"] and first["accuracy"]["rows"] == len(asked)
    assert first["confusion"] == [list(row) for row in report.confusion] and first["bytes"] == report.bytes
    assert "Side by side" in (out / "report.html").read_text() and (out / "2-confusion.png").is_file()

    seen = write_prompts(tmp_path / "seen.jsonl", [*asked, *known()[:40]])
    refused = cli("report", folder, "--data", seen, "--out", out)
    assert refused.exit_code == 1 and f"40 of {len(asked) + 40} rows are training prompts" in refused.stderr
    dropped = cli("report", folder, "--data", seen, "--drop-seen", "--json")
    assert json.loads(dropped.stdout)[0]["rows"] == len(asked)

    strange = write_prompts(tmp_path / "strange.jsonl", [*asked, Prompt(1, "boil an egg", "cooking", None)])
    refused = cli("report", folder, "--data", strange, "--json")
    assert refused.exit_code == 1 and "the router has no label 'cooking' (1 such rows)" in refused.stderr
    assert json.loads(cli("report", folder, "--data", strange, "--drop-unknown", "--json").stdout)[0]["rows"] == len(
        asked
    )
    assert cli("report", folder, "--data", data).exit_code == 2


def test_no_prompts_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="no prompts"):
        measure(folder, [])
