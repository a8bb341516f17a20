"""The edge's log: one line of JSON for a request or an event; never a prompt, an answer or a key."""

from __future__ import annotations

import logging
import os
import select
import sys
import time

import orjson

from .answer import Exchange

logger = logging.getLogger("collegium.edge")
access = logging.getLogger("collegium.access")


class JsonLines(logging.Formatter):
    """A record as one line of JSON; `fields` of the record stand beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {"time": round(time.time(), 3), "level": record.levelname.lower()}
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line.update(fields)
        else:
            line["message"] = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            # Where it happened but not what it says: an exception's words may quote a prompt.
            line["exception"] = record.exc_info[0].__name__
            line["at"] = _where(record.exc_info[1])
        return orjson.dumps(line, default=str).decode()


def _where(error: BaseException | None) -> list[str]:
    frames = []
    trace = error.__traceback__ if error else None
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rsplit('/', 2)[-1]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return frames[-8:]


class Lines(logging.Handler):
    """Writes lines to a descriptor that may be a full pipe or a full disk: what it does not take at once is dropped.

    A write that waits for whoever reads the pipe would stop the event loop, and with it every answer.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._cut = False
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self.dropped and self._wrote(self._told()):
            self.dropped = 0
        if not self._wrote(self.format(record)):
            self.dropped += 1

    def _told(self) -> str:
        words = f"{self.dropped} lines of this log were dropped: nobody took them"
        return self.format(logging.LogRecord(logger.name, logging.WARNING, __file__, 0, words, None, None))

    def _wrote(self, line: str) -> bool:
        """In portions, for each of which a pipe that is said to be ready has room."""
        data = (b"\n" if self._cut else b"") + line.encode(errors="replace") + b"\n"
        for start in range(0, len(data), select.PIPE_BUF):
            try:
                ready = any(events & select.POLLOUT for _, events in self._poll.poll(0))
                if not ready:
                    break
                os.write(self._descriptor, data[start : start + select.PIPE_BUF])
            except OSError:
                break
        else:
            self._cut = False
            return True
        self._cut = self._cut or start > 0
        return False


def configure(level: int = logging.INFO) -> None:
    """JSON lines on standard error for the whole process; libraries only from warnings on."""
    handler = Lines(sys.stderr.fileno())
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("collegium").setLevel(level)


def log_exchange(exchange: Exchange) -> None:
    """One line about one request."""
    access.info(
        "request",
        extra={
            "fields": {
                "request": exchange.id,
                "route": exchange.route,
                "expert": exchange.expert,
                "status": exchange.status,
                "end": exchange.end,
                "code": exchange.code,
                "key": exchange.key,
                "streamed": exchange.streamed,
                "seconds": round(exchange.seconds, 4),
                "first_byte": _rounded(exchange.first_byte),
                "classified": _rounded(exchange.classified),
                "prompt_tokens": exchange.used.prompt,
                "completion_tokens": exchange.used.completion,
                "bytes_in": exchange.bytes_in,
                "bytes_out": exchange.bytes_out,
                "malformed": exchange.malformed,
                "attempts": [attempt.as_dict() for attempt in exchange.attempts],
            }
        },
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
