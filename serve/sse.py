"""Server-sent events: an incremental parser that no split of the bytes can confuse, and the writer."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

import orjson

_EVENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}")


class EventTooLongError(ValueError):
    """An event, or a line, is longer than the limit."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: the joined `data` lines, and its name where it has one."""

    data: str
    name: str = ""


class Parser:
    """Bytes in any portions -> events (WHATWG HTML, section 9.2.6). `id` and `retry` fields are dropped.

    Lines end by CRLF, CR or LF, comments are skipped, a leading BOM is dropped, invalid UTF-8 is replaced. An event
    that the stream cuts before its blank line is not an event.
    """

    def __init__(self, limit: int) -> None:
        """`limit` is the most characters that one event may hold."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._limit = limit
        self._line: list[str] = []
        self._line_size = 0
        self._data: list[str] = []
        self._data_size = 0
        self._name = ""
        self._after_cr = False
        self._begun = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that this portion completes.

        Raises:
            EventTooLongError: more than `limit` characters without an end.
        """
        text = self._decoder.decode(chunk)
        if text and not self._begun:
            self._begun = True
            text = text.removeprefix("\ufeff")
        if text and self._after_cr:
            self._after_cr = False
            text = text.removeprefix("\n")
        if text.endswith("\r"):
            self._after_cr = True
        events = []
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for part in lines[:-1]:
            self._line.append(part)
            event = self._take("".join(self._line))
            self._line.clear()
            self._line_size = 0
            if event is not None:
                events.append(event)
        self._line.append(lines[-1])
        self._line_size += len(lines[-1])
        self._check(self._line_size)
        return events

    def _take(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
            self._data_size += len(value) + 1
            self._check(self._data_size)
        elif field == "event":
            self._name = value
        return None

    def _dispatch(self) -> Event | None:
        event = Event("\n".join(self._data), self._name) if self._data else None
        self._data.clear()
        self._data_size = 0
        self._name = ""
        return event

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise EventTooLongError(f"an event is longer than {self._limit} characters")


DONE = b"data: [DONE]\n\n"


def encode(data: object, name: str = "") -> bytes:
    """One event of JSON data, which holds no line break; a name that is not plain is left out."""
    head = b"event: " + name.encode() + b"\n" if _EVENT_NAME.fullmatch(name) else b""
    return head + b"data: " + orjson.dumps(data) + b"\n\n"
