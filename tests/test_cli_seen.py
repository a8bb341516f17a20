"""Evaluations refuse questions that the router was trained on, before any model is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from collegium.cli.main import main
from collegium.cli.seen import router_behind, unseen_samples
from collegium.evals.records import Sample
from collegium.router.artefact import STARTER
from collegium.router.manifest import read_artefact
from collegium.router.store import keep
from collegium.training.data import Prompt
from collegium.training.recipes import Options
from collegium.training.train import train
from router_kit import labelled


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routers") / "mine"
    prompts = [Prompt(row, text, label) for row, (text, label) in enumerate(labelled(), start=1)]
    train(prompts, "tfidf", options=Options(name="mine")).save(folder)
    return folder


@pytest.fixture
def endpoint() -> Iterator[tuple[str, dict[str, object]]]:
    """The base URL of something that answers /v1/route, and what it answers; anything else it asks for is a 404."""
    told: dict[str, object] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            data = json.dumps(told).encode()
            self.send_response(200 if self.path == "/v1/route" else 404)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", told
    server.shutdown()
    server.server_close()


def sample(number: int, prompt: str, *choices: str) -> Sample:
    return Sample(str(number), prompt, "law", "A", choices)


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", *map(str, arguments)])


def outcome(number: int, question: str) -> dict[str, object]:
    return {
        "question_id": number, "category": "law", "src": "test", "question": question, "options": ["x", "y"],
        "answer": "A", "answer_index": 0, "dup_of": None, "pred_uniform": {"m": "A", "n": "B"},
        "correct_uniform": {"m": 1, "n": 0},
    }  # fmt: skip


def test_seen_samples_are_refused_or_dropped(router: Path) -> None:
    samples = [
        sample(1, labelled()[3][0].upper()),
        sample(2, "may a landlord enter at night"),
        sample(3, labelled()[5][0], "yes", "no"),
    ]
    with pytest.raises(ValueError, match=r"2 of 3 questions are training prompts of mine-.* \(first: 1, 3\)"):
        unseen_samples(samples, router, drop=False)
    assert [kept.id for kept in unseen_samples(samples, router, drop=True)] == ["2"]
    assert unseen_samples(samples[1:2], router, drop=False) == samples[1:2]
    with pytest.raises(ValueError, match="was trained on all 1 questions"):
        unseen_samples(samples[:1], router, drop=True)


def test_the_router_behind_an_endpoint_is_found(
    router: Path,
    endpoint: tuple[str, dict[str, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, told = endpoint
    monkeypatch.setenv("COLLEGIUM_STATE", str(tmp_path))
    assert router_behind(url, None) is None and router_behind("http://127.0.0.1:9/v1", None) is None
    told["router"] = read_artefact(STARTER)[0].version
    assert router_behind(url, "key") == STARTER
    told["router"] = read_artefact(router)[0].version
    assert router_behind(url, None) is None and "is not here" in capsys.readouterr().err
    assert router_behind(url, None) is None
    kept = keep(router, tmp_path / "routers")
    assert router_behind(url, None) == kept


def test_replay_and_run_refuse(router: Path, endpoint: tuple[str, dict[str, object]], tmp_path: Path) -> None:
    questions = [text for text, _ in labelled()[:4]] + [
        f"is clause {number} of this lease void" for number in range(20)
    ]
    outcomes, task = tmp_path / "outcomes.jsonl", tmp_path / "task.jsonl"
    outcomes.write_text("".join(json.dumps(outcome(*row)) + "\n" for row in enumerate(questions)))
    replayed = ["replay", "--outcomes", outcomes, "--experts", "m,n", "--router", router, "--folds", "2"]
    refused = cli(*replayed)
    assert refused.exit_code == 1 and "4 of 24 questions are training prompts of mine-" in refused.stderr
    dropped = cli(*replayed, "--drop-seen", "--json", "--cache", tmp_path / "cache")
    assert dropped.exit_code == 0, dropped.output
    assert json.loads(dropped.stdout)["n"] == 20 and "4 of 24 questions are left out" in dropped.stderr
    task.write_text("".join(json.dumps({"question": text, "answer": "1"}) + "\n" for text in questions))
    asked = ["run", "--task", task, "--kind", "math", "--endpoint", endpoint[0], "--targets", "auto"]
    stopped = cli(*asked, "--router", router, "--out", tmp_path / "run")
    assert stopped.exit_code == 1 and "4 of 24 questions are training prompts" in stopped.stderr
    assert not (tmp_path / "run").exists()
