"""A stream on its way through: every event checked, renamed to the expert, and the end told from a cut."""

from __future__ import annotations

import orjson

from .errors import ApiError
from .requests import Api
from .sse import DONE, Event, encode

MAX_MALFORMED = 3
_ENDS = {
    Api.RESPONSES: ("response.completed", "response.incomplete", "response.failed"),
    Api.MESSAGES: ("message_stop",),
}


class Stream:
    """Turns an expert's events into ours.

    `ended` is set by the API's end mark. `complete` also holds when all choices have their finish_reason, so that an
    expert that forgets the mark is not taken for one that broke off.
    """

    def __init__(self, api: Api, expert: str, choices: int = 1) -> None:
        self._api = api
        self._expert = expert
        self._choices = choices
        self._finished: set[int] = set()
        self._unfinished: set[int] = set()
        self._id: object = None
        self.malformed = 0
        self.ended = False

    @property
    def complete(self) -> bool:
        return self.ended or (not self._unfinished and len(self._finished) >= self._choices)

    def take(self, event: Event) -> bytes | None:
        """What to forward for one event; None for an event that is dropped.

        Raises:
            ApiError: the expert reports an error, or sent more than MAX_MALFORMED events that are no JSON object.
        """
        if event.data.strip() == "[DONE]":
            if self._api not in (Api.CHAT, Api.COMPLETIONS):
                return None
            if not self._finished and not self._unfinished:
                raise ApiError("upstream_invalid_response", f"{self._expert} ended its stream without an answer.")
            self.ended = True
            return DONE
        try:
            data = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            data = None
        if not isinstance(data, dict):
            self.malformed += 1
            if self.malformed > MAX_MALFORMED:
                raise ApiError("upstream_invalid_response", f"{self._expert} sent events that are not JSON.")
            return None
        if data.get("error") or data.get("type") == "error":
            raise ApiError("upstream_invalid_response", f"{self._expert} reported an error while answering.")
        if self._api in (Api.CHAT, Api.COMPLETIONS):
            return self._chunk(data)
        return self._typed(data)

    def closing(self) -> bytes:
        """The end mark that the expert left out, or nothing."""
        return DONE if self._api in (Api.CHAT, Api.COMPLETIONS) and not self.ended else b""

    def _chunk(self, data: dict[str, object]) -> bytes | None:
        choices = data.get("choices")
        if not isinstance(choices, list):
            self.malformed += 1
            return None
        if self._id is None:
            self._id = data.get("id")
        for choice in choices:
            if isinstance(choice, dict) and isinstance(index := choice.get("index", 0), int):
                self._note(index, choice.get("finish_reason") is not None)
        return encode({**data, "id": self._id, "model": self._expert})

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
        self.ended = self.ended or kind in _ENDS[self._api]
        return encode(data, kind)


def error_event(api: Api, error: ApiError) -> bytes:
    """The last event of a stream that fails under way; no end mark follows it."""
    if api in (Api.CHAT, Api.COMPLETIONS):
        return encode({"error": error.as_dict()})
    return encode({"type": "error", "error": error.as_dict()}, "error")


_RESULT = {Api.CHAT: "choices", Api.COMPLETIONS: "choices", Api.RESPONSES: "output", Api.MESSAGES: "content"}


def whole_answer(api: Api, expert: str, raw: bytes) -> bytes:
    """A non-streamed answer, checked and renamed to the expert.

    Raises:
        ApiError: it is not this API's answer.
    """
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError("upstream_invalid_response", f"{expert} answered something that is not JSON.") from error
    if not isinstance(data, dict) or data.get("error") or not isinstance(data.get(_RESULT[api]), list):
        raise ApiError("upstream_invalid_response", f"{expert} did not answer in the shape of this API.")
    return orjson.dumps({**data, "model": expert})
