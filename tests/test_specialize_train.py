"""Training for real on a tiny model: what is written, what is refused, and a run that is killed and goes on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from collegium.cli.specialize import command
from collegium.training.specialize import prepare, specialize
from collegium.training.specialize_data import SpecializeError, read_corpus
from collegium.training.specialize_model import Recipe
from collegium.training.specialize_progress import DivergedError
from collegium.training.specialize_tokens import Format
from peft import PeftModel
from safetensors.torch import load_file
from specialize_tiny import sums, tiny_model, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

FAST = {"rank": 4, "max_length": 96, "pack_tokens": 96, "lr": 0.01, "heldout_rows": 6, "evaluations": 2}


@pytest.fixture(scope="module")
def seed_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("seed")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "sums.jsonl", [*sums(), {"instruction": "no response"}])


def recipe(model: str, **changed: object) -> Recipe:
    settings: dict[str, object] = {**FAST, "tokens_budget": 6_000, "epochs": 9, **changed}
    return Recipe(model, "math", **settings)  # type: ignore[arg-type]


def adapter_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_the_folder_holds_an_adapter_that_learned(seed_model: str, data: Path, tmp_path: Path) -> None:
    made = specialize(recipe(seed_model), data, tmp_path / "sums", engine="base", merge=True, quiet=True)
    assert made.loss_after < 0.9 * made.loss_before
    assert [bad.number for bad in made.bad_rows] == [61]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sums"]

    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["inference_mode"]) == (seed_model, 4, True)
    tensors = load_file(made.folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    card = yaml.safe_load((made.folder / "card.yaml").read_text())
    assert card["name"] == "sums"
    assert card["backend"] == {
        "kind": "adapter", "engine": "base", "adapter": ".", "rank": 4, "sha256": adapter_hash(made.folder)
    }  # fmt: skip
    provenance = json.loads((made.folder / "provenance.json").read_text())
    assert provenance["data"] == {
        "sha256": hashlib.sha256(data.read_bytes()).hexdigest(), "sources": {"sums": {"rows": 60, "licence": "MIT"}}
    }  # fmt: skip
    weights = hashlib.sha256((Path(seed_model) / "model.safetensors").read_bytes()).hexdigest()
    assert provenance["base"]["sha256"] == weights
    metrics = json.loads((made.folder / "metrics.json").read_text())
    assert metrics["heldout"]["loss_after"] == made.loss_after
    assert metrics["data"]["bad_rows"] == 1

    ids = torch.arange(20)[None]
    base = AutoModelForCausalLM.from_pretrained(seed_model)
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(base, str(made.folder)).eval()(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(made.folder / "merged").eval()(ids).logits
    assert torch.allclose(adapted, merged, atol=1e-3)


def test_the_same_seed_gives_the_same_adapter(seed_model: str, data: Path, tmp_path: Path) -> None:
    short = recipe(seed_model, tokens_budget=1_500)
    first, second = (specialize(short, data, tmp_path / name / "same", quiet=True).folder for name in "ab")
    assert adapter_hash(first) == adapter_hash(second)
    other = specialize(recipe(seed_model, tokens_budget=1_500, seed=1), data, tmp_path / "c" / "same", quiet=True)
    assert adapter_hash(other.folder) != adapter_hash(first)


def test_a_killed_run_goes_on_and_ends_where_it_would_have(seed_model: str, data: Path, tmp_path: Path) -> None:
    plan = recipe(seed_model, tokens_budget=6_000, epochs=18, evaluations=8)
    whole = specialize(plan, data, tmp_path / "whole" / "sums", quiet=True)
    out = tmp_path / "cut" / "sums"
    script = (
        "from pathlib import Path; from collegium.training.specialize import specialize; "
        "from collegium.training.specialize_model import Recipe\n"
        f"specialize({plan!r}, Path({str(data)!r}), Path({str(out)!r}), quiet=True)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    work = out.with_name("sums.unfinished")
    while not list(work.glob("checkpoints/*/trainer_state.json")) and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists()

    with pytest.raises(SpecializeError, match="--resume"):
        specialize(plan, data, out, quiet=True)
    with pytest.raises(SpecializeError, match="other settings"):
        specialize(recipe(seed_model), data, out, resume=True, quiet=True)
    newest = max(int(path.name.split("-")[1]) for path in work.glob("checkpoints/*"))
    torn = work / "checkpoints" / f"checkpoint-{newest + 1}"
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"cut")
    resumed = specialize(plan, data, out, resume=True, quiet=True)
    assert adapter_hash(resumed.folder) == adapter_hash(whole.folder)
    assert (resumed.tokens, resumed.loss_before) == (whole.tokens, whole.loss_before)
    assert not work.exists()


def test_a_run_that_diverges_stops_and_says_so(seed_model: str, data: Path, tmp_path: Path) -> None:
    good = specialize(
        recipe(seed_model, tokens_budget=3_000, epochs=9), data, tmp_path / "good", merge=True, quiet=True
    )
    wild = recipe(str(good.folder / "merged"), lr=0.99, rank=8, evaluations=10)
    with pytest.raises(DivergedError, match="lower --lr"):
        specialize(wild, data, tmp_path / "wild", quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_a_base_with_broken_weights_is_stopped_at_once(seed_model: str, data: Path, tmp_path: Path) -> None:
    broken = AutoModelForCausalLM.from_pretrained(seed_model)
    broken.lm_head.weight.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(seed_model).save_pretrained(tmp_path / "broken")
    with pytest.raises(DivergedError, match="nan at step 0"):
        specialize(recipe(str(tmp_path / "broken")), data, tmp_path / "out", quiet=True)


def test_plain_text_trains_too(seed_model: str, tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text("\n\n".join(f"Chapter {n}. " + "the sum of it all is more than its parts " * 45 for n in range(12)))
    made = specialize(recipe(seed_model, tokens_budget=2_000), text, tmp_path / "book", quiet=True)
    assert made.loss_after < made.loss_before


def test_a_run_goes_on_from_a_siblings_adapter(seed_model: str, data: Path, tmp_path: Path) -> None:
    sibling = specialize(recipe(seed_model), data, tmp_path / "sibling", quiet=True)
    plan = recipe(seed_model, tokens_budget=1_500, lr=0.001)
    made = specialize(plan, data, tmp_path / "made", start=sibling.folder, quiet=True)
    assert made.loss_before == pytest.approx(sibling.loss_after, rel=1e-3)
    assert made.loss_after < sibling.loss_before
    began = json.loads((made.folder / "provenance.json").read_text())["start"]
    assert began == {"adapter": "sibling", "sha256": adapter_hash(sibling.folder)}
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == seed_model
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "sibling"]


def test_questions_can_be_packed_apart_from_responses(seed_model: str, tmp_path: Path) -> None:
    rows = sums(40)
    rows += [{"question": f"twice {n}?", "choices": [f"{n}", f"{2 * n}"], "answer_index": 1} for n in range(1, 41)]
    corpus = read_corpus(write_rows(tmp_path / "mixed.jsonl", rows))
    form = Format(AutoTokenizer.from_pretrained(seed_model))
    kinds = {
        apart: [{len(sample.branches) > 1 for sample in packed}
                for packed in prepare(recipe(seed_model, apart=apart), corpus, None, form).train]
        for apart in (True, False)
    }  # fmt: skip
    assert {False, True} in kinds[False]
    assert all(len(kind) == 1 for kind in kinds[True])
    assert {True} in kinds[True] and {False} in kinds[True]


def test_a_start_that_is_no_adapter_of_these_settings_is_refused(seed_model: str, data: Path, tmp_path: Path) -> None:
    sibling = specialize(recipe(seed_model, tokens_budget=500), data, tmp_path / "sibling", quiet=True)
    with pytest.raises(SpecializeError, match="has r 4, the recipe 2"):
        specialize(recipe(seed_model, rank=2), data, tmp_path / "out", start=sibling.folder, quiet=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecializeError, match="cannot be loaded"):
        specialize(recipe(seed_model), data, tmp_path / "out", start=tmp_path / "empty", quiet=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": ("no_such_proj",)}, "no_such_proj"),
        ({"layers": 4}, "layers is 4"),
        ({"max_length": 20}, "fit into 20 tokens"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    seed_model: str, data: Path, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecializeError, match=message):
        specialize(recipe(seed_model, **changed), data, tmp_path / "out", quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changed", [{"rank": 0}, {"lr": 1.5}, {"pack_tokens": 8}, {"targets": ()}])
def test_impossible_recipes_are_refused(changed: dict[str, object]) -> None:
    with pytest.raises(SpecializeError):
        recipe("model", **changed)


def test_a_model_or_folder_that_cannot_be_used_is_named(seed_model: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecializeError, match="nowhere"):
        specialize(recipe(str(tmp_path / "nowhere")), data, tmp_path / "out", quiet=True)
    with pytest.raises(SpecializeError, match="exists already"):
        specialize(recipe(seed_model), data, tmp_path, quiet=True)


def test_a_full_disk_ends_with_a_sentence_and_keeps_nothing_half_written(
    seed_model: str, data: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for the full disk: writes fail in the middle."""
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from collegium.cli.specialize import command; command()"
    )
    arguments = [seed_model, str(data), "--out", str(tmp_path / "out"), "--domain", "math", "--tokens-budget", "1000"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments, "--max-length", "96"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Error: " in done.stderr
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_names_bad_rows_and_the_gain(seed_model: str, data: Path, tmp_path: Path) -> None:
    arguments = [seed_model, str(data), "--out", str(tmp_path / "sums"), "--domain", "math", "--max-length", "96"]
    options = ["--tokens-budget", "1500", "--lr", "0.01", "--heldout-rows", "6", "--rank", "2"]
    result = CliRunner().invoke(command, [*arguments, *options])
    assert result.exit_code == 0, result.output
    assert "left out row 61: response is missing" in result.output
    assert "held-out loss" in result.output
    again = CliRunner().invoke(command, [*arguments, *options])
    assert again.exit_code == 1
    assert "exists already" in again.output
