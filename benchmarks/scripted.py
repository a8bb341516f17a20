"""The cheapest OpenAI-compatible expert there can be, one fixed answer: `python benchmarks/scripted.py --port N`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Awaitable, Callable, Mapping

import uvicorn

MODEL = "scripted"
LONG = "/long"
"""Under this path a stream is of many tokens, each sent by itself."""

ANSWER = json.dumps(
    {
        "id": "chatcmpl-benchmark",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
).encode()
MODELS = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()


def _event(delta: Mapping[str, str]) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
    chunk = {"id": "chatcmpl-benchmark", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode()


FIRST, LAST = _event({"role": "assistant", "content": ""}), _event({}) + b"data: [DONE]\n\n"
EVENTS = FIRST + _event({"content": "Yes"}) + _event({"content": "."}) + LAST
LONG_EVENTS = (FIRST, *(_event({"content": "Yes"}),) * 64, LAST)


async def expert(
    scope: Mapping[str, object],
    receive: Callable[[], Awaitable[Mapping[str, object]]],
    send: Callable[[Mapping[str, object]], Awaitable[None]],
) -> None:
    """The ASGI application; every GET lists its one model, which is also what asks for its health."""
    if scope["type"] != "http":
        return
    asked, more = b"", True
    while more:
        message = await receive()
        part, more = message.get("body", b""), bool(message.get("more_body"))
        asked += part if isinstance(part, bytes) else b""
    if b'"stream":true' in asked.replace(b" ", b""):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        *events, last = LONG_EVENTS if str(scope["path"]).startswith(LONG) else (EVENTS,)
        for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": last})
        return
    body = MODELS if scope["method"] == "GET" else ANSWER
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvicorn.run(expert, port=parser.parse_args().port, log_level="error", access_log=False, lifespan="off")
