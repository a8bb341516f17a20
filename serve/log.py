"""The edge's log: one line of JSON for a request or an event; never a prompt, an answer or a key."""

from __future__ import annotations

import logging
import time

import orjson

from .answer import Exchange

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


def configure(level: int = logging.INFO) -> None:
    """JSON lines on standard error for the whole process; libraries only from warnings on."""
    handler = logging.StreamHandler()
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
