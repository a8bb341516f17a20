"""What clients send wrong: each gets one clear error in OpenAI's shape, and no expert hears of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from collegium.serve.errors import KINDS, ApiError
from collegium.serve.requests import Api, check, parse_object
from hypothesis import given
from hypothesis import strategies as st
from serve_kit import Running, raw_answer, running

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(Path(tmp_path_factory.mktemp("edge"))) as started:
        yield started


def refused(edge: Running, raw: bytes, path: str = "/v1/chat/completions") -> tuple[int, str, str | None]:
    before = len(edge.echo.received)
    answer = edge.post(path, content=raw, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["x-should-retry"] == "false"
    assert len(edge.echo.received) == before
    return answer.status_code, error["code"], error["param"]


def body(**changes: object) -> bytes:
    return json.dumps({"model": "auto", "messages": HELLO, **changes}).encode()


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"hello", "invalid_json"),
        (b'{"model": "auto"', "invalid_json"),
        (b'{"model":"auto","model":"math","messages":[]}', "invalid_json"),
        (body(temperature=float("nan")), "invalid_json"),
        (b"[]", "invalid_value"),
        (b"null", "invalid_value"),
        (b'"x"', "invalid_value"),
        (b'{"seed": 1e400}', "invalid_value"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "invalid_value"),
        (b"[" * 2000 + b"]" * 2000, "invalid_value"),
        (b"[" * 100_000, "invalid_value"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "invalid_value"),
        (b"[" + b"1," * 600_000 + b"1]", "invalid_value"),
        (b"[" + b"[]," * 100_000 + b"1]", "invalid_value"),
        (b"{" + b",".join(b'"%d":1' % number for number in range(100_001)) + b"}", "invalid_value"),
        (b'{"a":"' + b'\\"' * 2_000_000, "invalid_json"),
        (b'"' * 4_000_000, "invalid_json"),
        (b'{"model": "\xff"}', "invalid_unicode"),
        ('{"model": "auto"}'.encode("utf-16"), "invalid_unicode"),
        (b'\xef\xbb\xbf{"model": "auto"}', "invalid_unicode"),
        (b'{"model": "\\ud800"}', "invalid_unicode"),
        (body(user="\udfff"), "invalid_unicode"),
    ],
)
def test_broken_documents(edge: Running, raw: bytes, code: str) -> None:
    assert refused(edge, raw)[:2] == (400, code)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 1}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": HELLO * 2049}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [*HELLO, {"role": "wizard", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "spell"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/a"}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"stream": "yes"}, "stream"),
        ({"n": "1"}, "n"),
        ({"n": 0}, "n"),
        ({"n": 10**6}, "n"),
        ({"n": True}, "n"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"top_logprobs": 10**9}, "top_logprobs"),
        ({"stop": ["x"] * 10_000}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"logit_bias": {str(i): 0 for i in range(2000)}}, "logit_bias"),
        ({"tools": {}}, "tools"),
        ({"tools": ["x"]}, "tools[0]"),
        ({"response_format": {"type": "regex"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"stream_options": True}, "stream_options"),
    ],
)
def test_wrong_fields_are_named(edge: Running, changes: dict[str, object], param: str) -> None:
    assert refused(edge, body(**changes)) == (400, "invalid_value", param)


@pytest.mark.parametrize("name", ["api_base", "base_url", "extra_headers", "timeout", "fallbacks", "api_key"])
def test_fields_that_would_steer_the_request_elsewhere(edge: Running, name: str) -> None:
    assert refused(edge, body(**{name: None})) == (400, "unsupported_parameter", name)


def test_what_no_expert_offers(edge: Running) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    seen = [{"role": "user", "content": [{"type": "text", "text": "see"}, image]}]
    assert refused(edge, body(messages=seen)) == (400, "unsupported_parameter", "messages")
    assert refused(edge, body(messages=seen, model="math")) == (400, "unsupported_parameter", "messages")


@pytest.mark.parametrize(
    ("path", "sent", "param"),
    [
        ("completions", {"model": "auto"}, "prompt"),
        ("completions", {"model": "auto", "prompt": [1, "x"]}, "prompt"),
        ("completions", {"model": "auto", "prompt": []}, "prompt"),
        ("completions", {"model": "auto", "prompt": [-1]}, "prompt"),
        ("responses", {"model": "auto", "input": 1}, "input"),
        ("responses", {"model": "auto", "input": [{"role": "user"}]}, "input[0].content"),
        ("messages", {"model": "auto", "messages": HELLO}, "max_tokens"),
        ("messages", {"model": "auto", "max_tokens": 1, "messages": [{"role": "system", "content": "x"}]},
         "messages[0].role"),
        ("route", {}, "text"),
    ],
)  # fmt: skip
def test_the_other_apis(edge: Running, path: str, sent: dict[str, object], param: str) -> None:
    assert refused(edge, json.dumps(sent).encode(), f"/v1/{path}") == (400, "invalid_value", param)


def test_sizes(edge: Running) -> None:
    huge = body(messages=[{"role": "user", "content": "x" * 10_000_000}])
    assert refused(edge, huge)[:2] == (413, "request_too_large")
    chunked = (huge[i : i + 65_536] for i in range(0, len(huge), 65_536))
    answer = edge.post("/v1/chat/completions", content=chunked, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    million = edge.chat("x" * 1_000_000)
    assert million.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/json; charset=utf-7"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {},
    ],
)
def test_media_types(edge: Running, headers: dict[str, str]) -> None:
    answer = edge.post("/v1/chat/completions", content=body(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("HEAD", "/v1/models", 405),
        ("OPTIONS", "/v1/models", 405),
        ("GET", "/", 404),
        ("GET", "//v1///models", 404),
        ("GET", "/admin/experts", 404),
        ("GET", "/v1/models/%2e%2e%2fadmin", 404),
        ("POST", "/v1/embeddings", 404),
    ],
)
def test_paths_and_methods(edge: Running, method: str, path: str, status: int) -> None:
    answer = edge.http.request(method, f"{edge.url}{path}")
    assert answer.status_code == status
    assert answer.headers["x-request-id"].startswith("req_")
    if method != "HEAD":
        assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
        b"POST /v1/route HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/route HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"nonsense\r\n\r\n",
    ],
)
def test_requests_that_are_not_quite_http(edge: Running, head: bytes) -> None:
    assert raw_answer(edge.port, head).startswith(b"HTTP/1.1 400 ")


def test_control_headers_of_the_client_go_nowhere(edge: Running) -> None:
    sent = {
        "x-request-timeout-seconds": "0",
        "x-request-disconnect-disabled": "?1",
        "x-request-id": "mine",
        "x-serve-app": "other",
        "x-collegium-expert": "coding",
        "authorization": "Bearer secret-of-the-client",
    }
    answer = edge.post("/v1/chat/completions", content=body(), headers={"content-type": "application/json", **sent})
    assert answer.status_code == 200
    seen = edge.echo.last.headers
    assert not {"x-request-timeout-seconds", "x-request-disconnect-disabled", "x-serve-app", "authorization"} & set(
        seen
    )
    assert seen["x-request-id"] == answer.headers["x-request-id"] != "mine"
    assert answer.headers["x-collegium-expert"] == "general"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["model", "messages", "prompt", "input", "tools", "n", "stop", "text"]), JSON))
def test_any_object_is_checked_or_refused(data: dict[str, object]) -> None:
    for api in Api:
        try:
            request = check(api, dict(data))
        except ApiError as error:
            assert error.status == 400
        else:
            assert request.needs.tokens >= 0


@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,\\u0d81e.- ', max_size=60).map(str.encode))
def test_any_bytes_are_parsed_or_refused(raw: bytes) -> None:
    try:
        parsed = parse_object(raw)
    except ApiError as error:
        assert error.status == 400
        assert json.loads(error.body())["error"]["code"] == error.code
    else:
        assert parsed == json.loads(raw)


def test_no_status_is_one_that_clients_retry_by_mistake() -> None:
    assert all(kind.status != 408 for kind in KINDS.values())
    assert not any(kind.retry for kind in KINDS.values() if kind.status in (500, 504))
