"""`collegium ask`: one question to the endpoint, streamed, with who answered."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import click
import httpx2

DEFAULT_ENDPOINT = "http://127.0.0.1:8000/v1"


@click.command()
@click.argument("prompt")
@click.option("--endpoint", envvar="COLLEGIUM_ENDPOINT", default=DEFAULT_ENDPOINT, show_default=True)
@click.option("--model", default="auto", show_default=True, help="auto, or an expert's name.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 2), help="Left to the expert where not given.")
@click.option("--timeout", type=click.FloatRange(min=0.1), default=300, show_default=True, help="Seconds in all reads.")
def command(prompt: str, endpoint: str, model: str, max_tokens: int, temperature: float | None, timeout: float) -> None:
    """Ask PROMPT, stream the answer, and say which expert gave it.

    The key, where the endpoint wants one, is read from COLLEGIUM_API_KEY.
    """
    body: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "stream": True,
    }
    if temperature is not None:
        body["temperature"] = temperature
    key = os.environ.get("COLLEGIUM_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"{endpoint.rstrip('/')}/chat/completions"
    try:
        with (
            httpx2.Client(timeout=httpx2.Timeout(timeout, connect=5), trust_env=False) as client,
            client.stream("POST", url, json=body, headers=headers) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise click.ClickException(_error_message(response.text, response.status_code))
            for piece in _deltas(response.iter_lines()):
                click.echo(piece, nl=False)
            click.echo()
            click.echo(_signature(response.headers), err=True)
    except httpx2.InvalidURL as error:
        raise click.ClickException(f"{endpoint!r} is not a URL: {error}") from error
    except httpx2.HTTPError as error:
        raise click.ClickException(
            f"{endpoint} did not answer ({type(error).__name__}); start it with: collegium serve"
        ) from error


def _deltas(lines: Iterator[str]) -> Iterator[str]:
    """The text pieces of a chat stream.

    Raises:
        ClickException: the stream carries an error or ends without its end mark.
    """
    for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or not data:
            continue
        if data == "[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise click.ClickException(f"the answer broke off: {event['error'].get('message')}")
        for choice in event.get("choices", []):
            yield choice.get("delta", {}).get("content") or ""
    raise click.ClickException("the answer broke off without an end mark")


def _error_message(text: str, status: int) -> str:
    try:
        return f"{json.loads(text)['error']['message']} (HTTP {status})"
    except (ValueError, KeyError, TypeError):
        return f"the endpoint answered HTTP {status}"


def _signature(headers: httpx2.Headers) -> str:
    expert = headers.get("x-collegium-expert", "?")
    reason = headers.get("x-collegium-reason", "")
    return f"-- {expert}: {reason}"
