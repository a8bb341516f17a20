"""A scripted OpenAI-compatible expert on a real socket: it echoes, and a prompt of the form `!fault` makes it fail."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

KIND = {"/v1/chat/completions": "chat", "/v1/completions": "text", "/v1/responses": "responses"}


@dataclass(frozen=True, slots=True)
class Received:
    """One request as the expert saw it."""

    path: str
    headers: dict[str, str]
    body: dict[str, object]


@dataclass
class EchoExpert:
    """Runs in a thread between `__enter__` and `__exit__`. `gone` counts clients that left during an answer."""

    key: str | None = None
    received: list[Received] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    _server: ThreadedServer | None = None

    @property
    def url(self) -> str:
        if self._server is None:
            raise RuntimeError("not started")
        return f"{self._server.url}/v1"

    @property
    def last(self) -> Received:
        return self.received[-1]

    def __enter__(self) -> Self:
        routes = [Route(path, self._answer, methods=["POST"]) for path in (*KIND, "/v1/messages")]
        self._server = ThreadedServer(Starlette(routes=[*routes, Route("/v1/models", self._models)]))
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.stop()

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "echo", "object": "model"}]})

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self.received.append(Received(request.url.path, dict(request.headers), body))
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return _refusal(401, "Unauthorized", "invalid_api_key")
        text = _text(body)
        fault, _, argument = text.removeprefix("!").partition(" ") if text.startswith("!") else ("", "", "")
        if fault in _WHOLE_FAULTS:
            return _whole_fault(fault, argument)
        if fault == "hang":
            return await self._hang(request)
        kind = KIND.get(request.url.path, "messages")
        if body.get("stream"):
            return StreamingResponse(self._events(kind, text, fault, body), media_type="text/event-stream")
        return JSONResponse(whole(kind, text, body))

    async def _hang(self, request: Request) -> Response:
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)
        self.left.set()
        return PlainTextResponse("nobody reads this")

    async def _events(self, kind: str, text: str, fault: str, body: dict[str, object]) -> AsyncIterator[bytes]:
        ended = False
        try:
            sent = events(kind, text, body)
            for index, event in enumerate(sent):
                if index == 2:
                    if fault == "cut":
                        raise ConnectionAbortedError
                    if fault == "silent":
                        break
                    if fault == "stall":
                        await asyncio.sleep(3600)
                    if fault == "midway":
                        yield b'data: {"error": {"message": "secret http://10.0.0.1:8000 detail"}}\n\n'
                    if fault == "garbage":
                        yield b"data: {not json\n\n"
                    if fault == "slow":
                        await asyncio.sleep(0.6)
                if fault == "nomark" and index == len(sent) - 1:
                    break
                yield event
            ended = True
        finally:
            if not ended:
                self.left.set()


_WHOLE_FAULTS = ("status", "html", "empty", "redirect", "first", "gzip", "shape", "context", "big")


def _whole_fault(fault: str, argument: str) -> Response:
    if fault == "status":
        code, _, after = argument.partition(" ")
        headers = {"retry-after": after} if after else {}
        return PlainTextResponse("upstream detail at http://10.0.0.1:9999/secret", int(code), headers)
    if fault == "html":
        return Response("<html>login</html>", media_type="text/html")
    if fault == "empty":
        return Response("", media_type="application/json")
    if fault == "redirect":
        return Response(status_code=307, headers={"location": "http://169.254.169.254/latest"})
    if fault == "first":
        return Response('data: {"error": {"message": "no"}}\n\n', media_type="text/event-stream")
    if fault == "gzip":
        return Response(b"\x1f\x8b", media_type="application/json", headers={"content-encoding": "gzip"})
    if fault == "shape":
        return JSONResponse({"hello": "world"})
    if fault == "big":
        return Response(b"data: " + b"x" * 3_000_000, media_type="text/event-stream")
    return _refusal(400, "This model's maximum context length is 16 tokens, see http://10.0.0.1/x", None)


def _refusal(status: int, message: str, code: str | None) -> Response:
    return JSONResponse({"error": {"message": message, "type": "x", "param": None, "code": code}}, status)


def _text(body: dict[str, object]) -> str:
    """The last piece of text the client sent."""
    for key in ("messages", "input", "prompt"):
        value = body.get(key)
        while isinstance(value, list) and value:
            value = value[-1]
            if isinstance(value, dict):
                value = value.get("content", value.get("text", ""))
        if isinstance(value, str):
            return value
    return ""


def whole(kind: str, text: str, body: dict[str, object]) -> dict[str, object]:
    """An answer in one piece."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    base = {"id": "up-1", "created": 1, "model": body["model"]}
    if kind == "chat":
        message: dict[str, object] = {"role": "assistant", "content": text}
        if body.get("tools"):
            call = {"name": "weather", "arguments": '{"city":"Paris"}'}
            message = {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": call}],
            }
        choice: dict[str, object] = {"index": 0, "message": message, "finish_reason": "stop"}
        if body.get("logprobs"):
            token = {"token": text, "logprob": -0.25, "bytes": None, "top_logprobs": []}
            choice["logprobs"] = {"content": [token], "refusal": None}
        return {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
    if kind == "text":
        shown = f"{body['prompt']}{text}" if body.get("echo") else text
        choice = {"index": 0, "text": shown, "finish_reason": "stop", "logprobs": None}
        return {**base, "object": "text_completion", "choices": [choice], "usage": usage}
    if kind == "responses":
        part = {"type": "output_text", "text": text, "annotations": []}
        output = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}
        extra = {"created_at": 1, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        return {**base, **extra, "object": "response", "status": "completed", "output": [output]}
    usage = {"input_tokens": 3, "output_tokens": 2}
    content = [{"type": "text", "text": text}]
    said = {"role": "assistant", "content": content, "stop_reason": "end_turn", "usage": usage}
    return {**base, **said, "type": "message"}


def events(kind: str, text: str, body: dict[str, object]) -> list[bytes]:
    """An answer as events, one for each character of the text, with the API's end mark last."""
    pieces = list(text)
    if kind in ("chat", "text"):
        chunks: list[dict[str, object]] = []
        for index, piece in enumerate([*pieces, None]):
            finish = "stop" if piece is None else None
            said: dict[str, object] = {"text": piece or ""}
            if kind == "chat":
                said = {"delta": {"content": piece} if piece else {}}
            choice = {"index": 0, **said, "finish_reason": finish, "logprobs": None}
            name = "chat.completion.chunk" if kind == "chat" else "text_completion"
            chunks.append(
                {"id": f"up-{index}", "object": name, "created": 1, "model": body["model"], "choices": [choice]}
            )
        options = body.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            chunks.append({**chunks[-1], "choices": [], "usage": usage})
        return [*(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks), b"data: [DONE]\n\n"]
    if kind == "responses":
        response = whole(kind, text, body)
        delta: dict[str, object] = {
            "type": "response.output_text.delta",
            "item_id": "m",
            "output_index": 0,
            "content_index": 0,
        }
        typed: list[dict[str, object]] = [
            {"type": "response.created", "response": {**response, "status": "in_progress", "output": []}},
            *({**delta, "delta": piece, "logprobs": []} for piece in pieces),
            {"type": "response.completed", "response": response},
        ]
    else:
        message = {**whole(kind, "", body), "content": [], "stop_reason": None}
        typed = [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *(
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
                for piece in pieces
            ),
            {"type": "message_stop"},
        ]
    numbered = ({"sequence_number": number, **event} for number, event in enumerate(typed))
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in numbered]


class ThreadedServer:
    """An ASGI application under uvicorn in a thread, on a free loopback port."""

    def __init__(self, app: ASGIApp, http: type[asyncio.Protocol] | None = None) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            _quiet(app), log_config=None, access_log=False, ws="none", http=http or "httptools", loop="asyncio",
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    @property
    def port(self) -> int:
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._port = self.port
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the server did not start")
            self._thread.join(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


def _quiet(app: ASGIApp) -> ASGIApp:
    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except (ConnectionAbortedError, BaseExceptionGroup):
            return  # a scripted cut

    return run


@contextmanager
def served(app: ASGIApp, http: type[asyncio.Protocol] | None = None) -> Iterator[str]:
    """The application's address while it runs."""
    server = ThreadedServer(app, http)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()
