"""HTTP client of any OpenAI-compatible base URL: its models, whether it answers, and chat."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType

import httpx2

from .networks import AddressError, Networks


class ExpertError(RuntimeError):
    """An expert that did not answer as it should; the message names no key and no text of a prompt."""


class ConnectError(ExpertError):
    """Nothing answers at the URL, or not in time."""


class StatusError(ExpertError):
    """The expert refused: `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class KeyRefusedError(StatusError):
    """401 or 403: the key is missing or wrong."""


class ProtocolError(ExpertError):
    """What answers does not speak OpenAI's protocol."""


class ForbiddenAddressError(ConnectError):
    """The URL leads to an address that a remote expert may not have."""


class _Pinned(httpx2.BaseTransport):
    """Connects to an address that was checked; the name stays in Host and in TLS."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._inner = _transport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            addresses = self._networks.resolve(str(request.url))
        except AddressError as error:
            raise ForbiddenAddressError(str(error)) from error
        except OSError as error:
            raise httpx2.ConnectError("the name cannot be resolved") from error
        if not addresses:
            raise httpx2.ConnectError("the name has no address")
        request.extensions = {**request.extensions, "sni_hostname": request.url.host}
        for address in addresses[:-1]:
            with suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                return self._ask_at(address, request)
        return self._ask_at(addresses[-1], request)

    def _ask_at(self, address: str, request: httpx2.Request) -> httpx2.Response:
        request.url = request.url.copy_with(host=address)
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


def _transport() -> httpx2.HTTPTransport:
    """No proxy from the environment; certificates are checked with SSL_CERT_FILE, as the edge's connections are."""
    return httpx2.HTTPTransport(trust_env=False, verify=ssl.create_default_context())


class ExpertClient:
    """One base URL (it ends in /v1) and the key to it. Uses no proxy from the environment and follows no redirect.

    With `networks` the URL's addresses must be among them, and the connection goes to the one that was looked at.
    """

    def __init__(
        self, base_url: str, api_key: str | None = None, timeout: float = 60.0, networks: Networks | None = None
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.base_url = base_url.rstrip("/")
        self._http = httpx2.Client(
            headers=headers,
            timeout=timeout,
            trust_env=False,
            follow_redirects=False,
            transport=_Pinned(networks) if networks is not None else _transport(),
        )

    def __enter__(self) -> ExpertClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """Ids of the models that the URL serves; raises ExpertError. An answered GET /models is our health probe."""
        answer = self._answer("GET", "/models")
        rows = answer.get("data")
        if not isinstance(rows, list):
            raise ProtocolError(f"{self.base_url}/models answers without the list `data`")
        return [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]

    def chat(self, model: str, messages: Sequence[Mapping[str, str]], **options: object) -> str:
        """The answer's text; raises ExpertError. `options` are OpenAI's: temperature, max_tokens ..."""
        answer = self._answer("POST", "/chat/completions", {"model": model, "messages": list(messages), **options})
        try:
            return str(answer["choices"][0]["message"]["content"] or "")  # type: ignore[index]
        except (KeyError, IndexError, TypeError) as error:
            raise ProtocolError(f"{self.base_url} answers a chat without choices[0].message") from error

    def stream_chat(self, model: str, messages: Sequence[Mapping[str, str]], **options: object) -> Iterator[str]:
        """Pieces of the answer's text as they come; raises ExpertError, also where the stream stops before its end."""
        body = {**options, "model": model, "messages": list(messages), "stream": True}
        try:
            with self._http.stream("POST", f"{self.base_url}/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                self._raise_for_status(response)
                for line in response.iter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data:"):
                        yield from self._pieces(line.removeprefix("data:"))
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        raise ProtocolError(f"{self.base_url} ended its stream before [DONE]")

    def _pieces(self, data: str) -> Iterator[str]:
        chunk = self._object(data)
        if "error" in chunk:
            raise ExpertError(f"{self.base_url} broke off: {_message(chunk)}")
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            piece = choice.get("delta", {}).get("content")
            if piece:
                yield piece

    def _answer(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, object]:
        try:
            response = self._http.request(method, self.base_url + path, json=body)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        self._raise_for_status(response)
        return self._object(response.text)

    def _raise_for_status(self, response: httpx2.Response) -> None:
        status = response.status_code
        if status in (401, 403):
            raise KeyRefusedError(f"{self.base_url} refuses the key ({status})", status)
        if status != 200:
            raise StatusError(f"{self.base_url} answers {status}{_detail(response)}", status)

    def _object(self, text: str) -> dict[str, object]:
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ProtocolError(f"{self.base_url} answers something that is not JSON") from error
        if not isinstance(found, dict):
            raise ProtocolError(f"{self.base_url} answers JSON that is no object")
        return found

    def _unreachable(self, error: httpx2.HTTPError) -> ConnectError:
        if isinstance(error, httpx2.TimeoutException):
            return ConnectError(f"{self.base_url} does not answer in time")
        return ConnectError(f"{self.base_url} cannot be reached ({type(error).__name__})")


def _detail(response: httpx2.Response) -> str:
    try:
        found = response.json()
    except ValueError:
        return ""
    return f": {_message(found)}" if isinstance(found, dict) and "error" in found else ""


def _message(answer: Mapping[str, object]) -> str:
    error = answer["error"]
    text = error.get("message", "") if isinstance(error, dict) else error
    return str(text)[:300]
