"""C19, TLS towards remote experts: certificates are checked against the system's authorities and SSL_CERT_FILE."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from collegium.experts.card import parse_card
from collegium.experts.client import ConnectError, ExpertClient
from collegium.experts.networks import Networks
from collegium.experts.registry import State
from faults.expert import Expert
from faults.outside import outside

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
_HERE = "subjectAltName=IP:127.0.0.1"


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def authority(folder: Path, name: str) -> None:
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(folder, "req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")


def certificate(folder: Path, name: str, alternative: str, issuer: str, *more: str) -> ssl.SSLContext:
    """A server's context with a certificate that `issuer` has signed."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(folder, "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
    (folder / f"{name}.ext").write_text(alternative)
    signed = ("-CA", f"{issuer}.pem", "-CAkey", f"{issuer}.key", "-CAcreateserial", "-extfile", f"{name}.ext")
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem", *more)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def test_c19_only_certificates_of_known_authorities(tmp_path: Path) -> None:
    authority(tmp_path, "ours")
    authority(tmp_path, "unknown")
    right = certificate(tmp_path, "right", _HERE, "ours")
    wrong = {
        "unknown-authority": certificate(tmp_path, "stranger", _HERE, "unknown"),
        "other-host": certificate(tmp_path, "elsewhere", "subjectAltName=DNS:other.example", "ours"),
        "expired": certificate(tmp_path, "old", _HERE, "ours", "-days", "-1"),
    }
    asyncio.run(_ask_all(tmp_path, right, wrong))


@pytest.mark.parametrize("networks", [None, Networks.parse(["127.0.0.1"])])
def test_c19_probes_trust_whom_the_edge_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks: Networks | None
) -> None:
    authority(tmp_path, "ours")
    with Expert(tls=certificate(tmp_path, "right", _HERE, "ours")) as expert:
        with ExpertClient(expert.url, networks=networks) as client, pytest.raises(ConnectError):
            client.models()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ours.pem"))
        with ExpertClient(expert.url, networks=networks) as client:
            assert client.models() == ["scripted"]


async def _ask_all(folder: Path, right: ssl.SSLContext, wrong: dict[str, ssl.SSLContext]) -> None:
    async with AsyncExitStack() as stack:
        experts = {name: Expert(tls=context) for name, context in wrong.items()}
        for expert in experts.values():
            await expert.start()
            stack.push_async_callback(expert.stop)
        trusted = {"SSL_CERT_FILE": str(folder / "ours.pem")}
        edge = await stack.enter_async_context(
            outside(folder, Expert(tls=right), environment=trusted, breaker_failures=2, breaker_pause=60)
        )
        for name, expert in experts.items():
            backend = {"kind": "remote", "url": expert.url, "model": "scripted"}
            edge.registry.add(parse_card({"name": name, "backend": backend}))
            edge.registry.observe(name, State.READY, base_url=expert.url)
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def ask(model: str) -> tuple[int, str]:
            body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
            async with session.post(f"{edge.url}/v1/chat/completions", json=body) as response:
                told = await response.json()
            return response.status, told.get("error", {}).get("code", told.get("model"))

        assert await ask("math") == (200, "math")
        for name, expert in experts.items():
            while (refused := await ask(name)) == (404, "model_not_found"):
                await asyncio.sleep(0.05)
            assert refused == (502, "upstream_connection_failed")
            assert await ask(name) == (503, "no_healthy_expert")  # the breaker counted both tries
            assert not expert.attempts, "the request went out all the same"
