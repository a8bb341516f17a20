"""Preflight, probes and the client, against real servers on real sockets."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from collegium.experts.backends import Address, RemoteBackend
from collegium.experts.card import Card, CardError, parse_card
from collegium.experts.client import ConnectError, ExpertClient, ExpertError, KeyRefusedError, ProtocolError
from collegium.experts.networks import Networks
from collegium.experts.plan import Machine
from collegium.experts.preflight import check_card, check_pool
from collegium.experts.probes import Probes
from collegium.experts.reconcile import Probe
from collegium.experts.records import ExpertRecord, State

LARGE = Machine(1024)
Answer = tuple[int, bytes]


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], Answer]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, body = answer(self)
            self.send_response(status)
            self.send_header("location", "http://169.254.169.254/")
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - http.server's names

        def log_message(self, format: str, *arguments: object) -> None:
            return

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listener.server_address[1]}/v1"
    listener.shutdown()
    listener.server_close()


def models(*names: str) -> bytes:
    return json.dumps({"data": [{"id": name} for name in names]}).encode()


def remote(url: str, **backend: object) -> Card:
    return parse_card({"name": "far", "backend": {"kind": "remote", "url": url, "model": "m", **backend}})


def record(card: Card) -> ExpertRecord:
    return ExpertRecord(card, 1, False, State.READY, "", None, 0.0)


def engine(name: str, model: str, memory_gb: float = 4) -> Card:
    backend = {"kind": "engine", "model": model, "memory_gb": memory_gb, "accelerator": "cpu"}
    return parse_card({"name": name, "generalist": True, "backend": backend})


def test_a_url_that_serves_the_model_passes() -> None:
    with server(lambda request: (200, models("m", "n"))) as url:
        check_card(remote(url), [])


def test_a_gateway_without_a_list_of_models_passes() -> None:
    with server(lambda request: (404, b"not found")) as url:
        check_card(remote(url), [])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, models("other")), "does not serve the model 'm'; it serves other"),
        ((401, b"{}"), r"refuses the key \(401\); name the environment variable"),
        ((403, b"{}"), r"refuses the key \(403\)"),
        ((500, b"boom"), "answers 500"),
        ((302, b""), "answers 302"),
        ((200, b"<html>"), "not JSON"),
        ((200, b"[]"), "no object"),
        ((200, b"{}"), "without the list"),
    ],
)
def test_a_url_that_answers_wrong_is_refused_in_a_sentence(answer: Answer, said: str) -> None:
    with server(lambda request: answer) as url, pytest.raises(CardError, match=said):
        check_card(remote(url), [])


def test_each_of_several_urls_is_asked_and_judged() -> None:
    def several(*urls: str) -> Card:
        return parse_card({"name": "far", "backend": {"kind": "remote", "urls": urls, "model": "m"}})

    with server(lambda request: (200, models("m"))) as good, server(lambda request: (200, models("n"))) as other:
        check_card(several(good, good.replace("127.0.0.1", "localhost")), [])
        with pytest.raises(CardError, match=f"{other} does not serve the model 'm'"):
            check_card(several(good, other), [])
        own = Networks.parse(["127.0.0.1/32"])
        with pytest.raises(CardError, match=r"127\.0\.0\.2 is at 127\.0\.0\.2, which is not a public address"):
            check_card(several(good, "http://127.0.0.2:8000/v1"), [], networks=own)


def test_probes_look_at_every_url() -> None:
    with server(lambda request: (200, models("m"))) as good, server(lambda request: (500, b"")) as bad:
        card = parse_card({"name": "far", "backend": {"kind": "remote", "urls": [bad, good], "model": "m"}})
        probes, pause = Probes(period=0.0), threading.Event()
        while len(found := probes.update([record(card)])) < 2:
            pause.wait(0.02)
        assert {one.url: probe.ok for one, probe in found.items()} == {good: True, bad: False}
        probes.close()


def test_nothing_at_the_url_is_said() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(CardError, match="cannot be reached"):
            check_card(remote(f"http://127.0.0.1:{closed.getsockname()[1]}/v1"), [])


def test_the_key_comes_from_the_environment_and_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: BaseHTTPRequestHandler) -> Answer:
        return (200, models("m")) if request.headers["authorization"] == "Bearer s3cret" else (401, b"{}")

    with server(answer) as url:
        monkeypatch.delenv("FAR_KEY", raising=False)
        with pytest.raises(CardError, match=r"FAR_KEY .* is not set"):
            check_card(remote(url, api_key_env="FAR_KEY"), [])
        monkeypatch.setenv("FAR_KEY", "wrong-s3cret")
        with pytest.raises(CardError, match="FAR_KEY holds a key it does not accept") as refused:
            check_card(remote(url, api_key_env="FAR_KEY"), [])
        assert "wrong-s3cret" not in str(refused.value)
        monkeypatch.setenv("FAR_KEY", "s3cret")
        check_card(remote(url, api_key_env="FAR_KEY"), [])


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(lambda request: (200, models("m"))) as url:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        check_card(remote(url), [])


def test_a_prompted_card_needs_an_engine_that_is_there() -> None:
    brief = parse_card({"name": "brief", "backend": {"kind": "prompted", "engine": "base", "system_prompt": "x"}})
    with pytest.raises(CardError, match=r"'base'.*there are: none"):
        check_card(brief, [])
    check_card(brief, [record(engine("base", "lab/model"))])
    leaving = ExpertRecord(engine("base", "lab/model"), 1, True, State.DRAINING, "", None, 0.0)
    with pytest.raises(CardError, match="'base'"):
        check_card(brief, [leaving])


def test_an_engine_needs_its_model_and_memory_beside_the_others(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(CardError, match="there is no folder"):
        check_card(engine("base", "/no/such/model"), [], LARGE)
    (tmp_path / "config.json").write_text("{}")
    card = engine("base", str(tmp_path))
    check_card(card, [], Machine(6))
    check_card(card, [record(card)], Machine(6))
    with pytest.raises(CardError, match=r"'base' does not fit.*need 9\.5 GB"):
        check_card(card, [record(engine("other", "lab/model"))], Machine(6))


def test_a_pool_is_checked_as_a_whole_without_asking_its_urls(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    check_pool([remote("http://127.0.0.1:9/v1")], [], LARGE)
    with pytest.raises(CardError, match=r"'base'.*no folder /no/such.*need 41\.5 GB"):
        check_pool([engine("base", "/no/such", 40)], [], Machine(8))


def address(card: Card) -> Address:
    assert isinstance(card.backend, RemoteBackend)
    return card.backend.addresses[0]


def wait_for(probes: Probes, records: list[ExpertRecord], wanted: Callable[[Probe | None], bool]) -> None:
    """Until the probe of the first record is as wanted; the test's own time limit ends a wait in vain."""
    pause = threading.Event()
    while not wanted(probes.update(records).get(address(records[0].card))):
        pause.wait(0.02)


def test_probes_forgive_one_failure_and_see_a_return() -> None:
    answers = [200, 500, 200, 500, 500, 200]
    seen: list[bool] = []

    def answer(request: BaseHTTPRequestHandler) -> Answer:
        return (answers.pop(0) if len(answers) > 1 else answers[0], models("m"))

    with server(answer) as url:
        probes, records = Probes(period=0.0), [record(remote(url))]
        wait_for(probes, records, lambda probe: probe is not None and probe.ok)
        wait_for(probes, records, lambda probe: seen.append(bool(probe and probe.ok)) or len(answers) <= 3)  # type: ignore[func-returns-value]
        assert all(seen), "one failure between two good answers took the expert away"
        wait_for(probes, records, lambda probe: probe is not None and not probe.ok and "500" in probe.reason)
        wait_for(probes, records, lambda probe: probe is not None and probe.ok)
        probes.close()


def test_a_silent_url_is_in_nobodys_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, server(lambda request: (200, models("m"))) as url:
        dumb = record(remote(f"http://127.0.0.1:{silent.getsockname()[1]}/v1"))
        probes = Probes(timeout=60.0)
        wait_for(probes, [record(remote(url)), dumb], lambda probe: probe is not None and probe.ok)
        assert address(dumb.card) not in probes.update([dumb])
        probes.close()


def test_streamed_chat_yields_the_pieces_and_notices_a_cut() -> None:
    def stream(*texts: str, done: bool) -> bytes:
        events = [json.dumps({"choices": [{"delta": {"content": text}}]}) for text in texts] + ["[DONE]"] * done
        return "".join(f"data: {event}\n\n" for event in events).encode()

    asked = [{"role": "user", "content": "hi"}]
    with server(lambda request: (200, stream("a", "b", done=True))) as url, ExpertClient(url) as client:
        assert list(client.stream_chat("m", asked)) == ["a", "b"]
    with server(lambda request: (200, stream("a", done=False))) as url, ExpertClient(url) as client:
        pieces = client.stream_chat("m", asked)
        assert next(pieces) == "a"
        with pytest.raises(ProtocolError, match="before"):
            next(pieces)
    error = b'data: {"error": {"message": "out of memory"}}\n\n'
    with server(lambda request: (200, error)) as url, ExpertClient(url) as client, pytest.raises(ExpertError) as broken:
        list(client.stream_chat("m", asked))
    assert "out of memory" in str(broken.value)


def test_the_clients_errors_tell_what_happened() -> None:
    asked = [{"role": "user", "content": "my secret question"}]
    with server(lambda request: (401, b"{}")) as url, ExpertClient(url, "k3y") as client:
        with pytest.raises(KeyRefusedError) as refused:
            client.chat("m", asked)
        assert refused.value.status == 401 and "k3y" not in str(refused.value)
    with ExpertClient("http://127.0.0.1:9/v1") as client, pytest.raises(ConnectError) as failed:
        client.chat("m", asked)
    assert "secret" not in str(failed.value)
    whole = json.dumps({"choices": [{"message": {"content": "hello"}}]}).encode()
    with server(lambda request: (200, whole)) as url, ExpertClient(url) as client:
        assert client.chat("m", asked, max_tokens=3) == "hello"
