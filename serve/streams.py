"""A stream on its way through: every event checked, renamed to the expert, and the end told from a cut."""

from __future__ import annotations

import orjson

from .errors import ApiError
from .failure import Fault, UpstreamError
from .requests import Api
from .sse import DONE, Event, encode
from .transcript import Transcript
from .usage import Usage

MAX_MALFORMED = 3
_ENDS = {
    Api.RESPONSES: ("response.completed", "response.incomplete", "response.failed"),
    Api.MESSAGES: ("message_stop",),
}
# Events that say only that the expert has begun: as long as nothing else came, it has not answered.
_PREAMBLE = frozenset(
    {
        "response.created", "response.in_progress", "response.queued", "response.output_item.added",
        "response.content_part.added", "message_start", "content_block_start", "ping",
    }
)  # fmt: skip
_CHUNKED = (Api.CHAT, Api.COMPLETIONS)


class Stream:
    """Turns an expert's events into ours.

    `real` is set by the first event with something of the answer in it. `ended` is set by the API's end mark.
    `complete` also holds when all choices have their finish_reason, so that an expert that forgets the mark is not
    taken for one that broke off. With a `transcript` the ids of the tokens are kept there and taken out of the events.
    """

    def __init__(
        self,
        api: Api,
        expert: str,
        choices: int = 1,
        transcript: Transcript | None = None,
        used: Usage | None = None,
    ) -> None:
        """What the expert counts goes into `used`."""
        self.api = api
        self._used = used or Usage()
        self._expert = expert
        self._choices = choices
        self._transcript = transcript
        self._finished: set[int] = set()
        self._unfinished: set[int] = set()
        self._same: dict[str, object] = {}
        self._continued = False
        self.malformed = 0
        self.real = False
        self.ended = False

    @property
    def complete(self) -> bool:
        return self.ended or (not self._unfinished and len(self._finished) >= self._choices)

    def take(self, event: Event) -> bytes | None:
        """What to forward for one event; None for an event that is dropped.

        Raises:
            UpstreamError: the expert reports an error, or sent more than MAX_MALFORMED events that are no JSON object.
        """
        if event.data.strip() == "[DONE]":
            if self.api not in _CHUNKED:
                return None
            if not self._finished and not self._unfinished:
                raise self._invalid("ended its stream without an answer")
            if self._unfinished:
                raise self._broken()
            self.ended = True
            return DONE
        try:
            data = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            data = None
        if not isinstance(data, dict):
            self._drop()
            return None
        if data.get("error") or data.get("type") in ("error", "response.failed"):
            text = f"{self._expert} reported an error while answering."
            raise UpstreamError(Fault.ERROR, "upstream_invalid_response", text)
        if self.api in _CHUNKED:
            return self._chunk(data)
        self._used.see(data)
        return self._typed(data)

    def continued(self) -> None:
        """From here on the events are another engine's, which completes the transcript."""
        self._continued = True

    def closing(self) -> bytes:
        """The end mark that the expert left out, or nothing."""
        return DONE if self.api in _CHUNKED and not self.ended else b""

    def _drop(self) -> None:
        self.malformed += 1
        if self.malformed > MAX_MALFORMED:
            raise self._invalid("sent events that are not this API's")

    def _invalid(self, did: str) -> UpstreamError:
        return UpstreamError(Fault.INVALID, "upstream_invalid_response", f"{self._expert} {did}.")

    def _broken(self) -> UpstreamError:
        return UpstreamError(Fault.BROKEN, "upstream_stream_truncated", f"{self._expert} broke off its answer.")

    def _chunk(self, data: dict[str, object]) -> bytes | None:
        choices = data.get("choices")
        if not isinstance(choices, list):
            self._drop()
            return None
        if not self._same:
            self._same = {name: data[name] for name in ("id", "object", "created") if name in data}
        if self._transcript is not None:
            choices = self._transcribed(data, choices, self._transcript)
            if choices is None:
                return None
            data["choices"] = choices
        self._used.see(data)
        for choice in choices:
            if isinstance(choice, dict) and isinstance(index := choice.get("index", 0), int):
                finished = choice.get("finish_reason") is not None
                self._note(index, finished)
                self.real = self.real or finished or _says(choice)
        return encode({**data, **self._same, "model": self._expert})

    def _transcribed(
        self, data: dict[str, object], choices: list[object], transcript: Transcript
    ) -> list[object] | None:
        """The choices without their token ids, in this API's shape; None for a chunk that says nothing new."""
        transcript.start(data.pop("prompt_token_ids", None))
        if not choices and self._continued:
            data["usage"] = transcript.usage(data.get("usage"))
        found: list[object] = []
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            transcript.start(choice.pop("prompt_token_ids", None))
            ids = choice.pop("token_ids", None)
            if self._continued:
                finished = choice.get("finish_reason") is not None
                new = transcript.accept(ids if isinstance(ids, list) else [], str(choice.pop("text", "")), finished)
                if not new and not finished:
                    return None
                choice = {**choice, **({"delta": {"content": new}} if self.api is Api.CHAT else {"text": new})}
            else:
                delta = choice.get("delta")
                said = delta if isinstance(delta, dict) else {"content": choice.get("text")}
                others = any(value for name, value in said.items() if name not in ("content", "role"))
                transcript.note(ids, said.get("content"), others)
            found.append(choice)
        return found

    def _note(self, index: int, finished: bool) -> None:
        if finished:
            self._finished.add(index)
            self._unfinished.discard(index)
        elif index not in self._finished:
            self._unfinished.add(index)

    def _typed(self, data: dict[str, object]) -> bytes:
        kind = str(data.get("type", ""))
        for key in ("response", "message"):
            inner = data.get(key)
            if isinstance(inner, dict):
                data[key] = {**inner, "model": self._expert}
        if "model" in data:
            data["model"] = self._expert
        self.real = self.real or kind not in _PREAMBLE
        self.ended = self.ended or kind in _ENDS[self.api]
        return encode(data, kind)


def _says(choice: dict[str, object]) -> bool:
    """Whether a chunk's choice holds anything of the answer: text, or any part of a delta but the role."""
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return any(value for name, value in delta.items() if name != "role")
    return bool(choice.get("text"))


def error_event(api: Api, error: ApiError) -> bytes:
    """The last event of a stream that fails under way; no end mark follows it."""
    if api in _CHUNKED:
        return encode({"error": error.as_dict()})
    return encode({"type": "error", "error": error.as_dict()}, "error")


_RESULT = {Api.CHAT: "choices", Api.COMPLETIONS: "choices", Api.RESPONSES: "output", Api.MESSAGES: "content"}


def whole_answer(api: Api, expert: str, raw: bytes, used: Usage | None = None) -> bytes:
    """A non-streamed answer, checked and renamed to the expert. What it counts goes into `used`.

    Raises:
        UpstreamError: it is not this API's answer.
    """
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise UpstreamError(
            Fault.INVALID, "upstream_invalid_response", f"{expert} answered something that is not JSON."
        ) from error
    if not isinstance(data, dict) or data.get("error") or not _is_answer(api, data.get(_RESULT[api])):
        raise UpstreamError(
            Fault.INVALID, "upstream_invalid_response", f"{expert} did not answer in the shape of this API."
        )
    if used is not None and isinstance(data.get("usage"), dict):
        used.see(data)
    return orjson.dumps({**data, "model": expert})


def _is_answer(api: Api, result: object) -> bool:
    return isinstance(result, list) and (bool(result) or api not in _CHUNKED)
