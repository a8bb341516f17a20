"""Where a remote expert may be: a table of addresses, names that change their mind, and a listener nobody may reach."""

# ruff: noqa: S104 - addresses that nobody shall reach

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from collegium.experts.backends import Address
from collegium.experts.card import CardError
from collegium.experts.client import ConnectError, ExpertClient, ForbiddenAddressError
from collegium.experts.networks import AddressError, Networks
from collegium.experts.preflight import probe_remote
from echo_expert import EchoExpert

PRIVATE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.1.2.3",
    "169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1",
    "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1",
    "255.255.255.255", "168.63.129.16", "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:a00:1::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1",
    "ff02::1", "2001:db8::1", "100::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not Networks().permit(address)
    with pytest.raises(AddressError, match="--allow-network"):
        Networks().resolve("http://expert.example:8000/v1", lambda host, port: [address])


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert Networks().permit(address)
    assert Networks().resolve("https://expert.example/v1", lambda host, port: [address]) == [address]


def test_allowed_networks_do_not_take_the_metadata_service_with_them() -> None:
    networks = Networks.parse(["10.0.0.0/8", "127.0.0.1", "169.254.0.0/16", "::/0"])
    assert networks.permit("10.1.2.3") and networks.permit("127.0.0.1") and networks.permit("::1")
    assert not networks.permit("127.0.0.2") and not networks.permit("192.168.0.1")
    assert not networks.permit("169.254.169.254") and not networks.permit("::ffff:169.254.169.254")
    assert Networks.parse(["169.254.169.254"]).permit("169.254.169.254")
    given = {"COLLEGIUM_ALLOW_NETWORKS": " 10.0.0.0/8, fd00::/8"}
    assert Networks.from_environment(given).listed == "10.0.0.0/8,fd00::/8"
    assert Networks.from_environment({}) == Networks()
    with pytest.raises(ValueError, match="'lan' is not a network"):
        Networks.parse(["lan"])


def test_of_a_name_with_both_only_the_public_address_is_used() -> None:
    found = Networks().resolve("http://expert.example/v1", lambda host, port: ["127.0.0.1", "1.1.1.1"])
    assert found == ["1.1.1.1"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/v1", "http://127.1:8000/v1", "http://2130706433:8000/v1", "http://0x7f000001:8000/v1",
        "http://0177.0.0.1:8000/v1", "http://localhost:8000/v1", "http://[::1]:8000/v1",
        "http://[::ffff:127.0.0.1]:8000/v1", "http://[::]:8000/v1", "http://0:8000/v1", "http://0.0.0.0:8000/v1",
        "http://169.254.169.254/latest", "http://[fd00:ec2::254]/latest", "http://10.0.0.1/v1",
        "http://1.1.1.1:22/v1", "http://1.1.1.1:25/v1", "http://1.1.1.1:0/v1", "http://1.1.1.1:99999/v1",
        "file:///etc/passwd", "gopher://1.1.1.1:70/", "http:///v1", "http://lоcalhost/v1", "http://①②⑦.0.0.1/v1",
        "http://" + "a" * 64 + ".example/v1", "http://a..example/v1",
    ],
)  # fmt: skip
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises((AddressError, OSError)):
        Networks().resolve(url)


@contextmanager
def canary() -> Iterator[tuple[int, list[bytes]]]:
    """A listener that nobody may reach, and what reached it."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        stop = threading.Event()

        def listen() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    heard.append(b"connected")

        thread = threading.Thread(target=listen)
        thread.start()
        yield listener.getsockname()[1], heard
        stop.set()
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "[::ffff:127.0.0.1]"])
def test_a_probe_does_not_reach_into_the_own_network(host: str) -> None:
    with canary() as (port, heard):
        address = Address(f"http://{host}:{port}/v1", "m", None)
        with pytest.raises(CardError, match="not a public address"):
            probe_remote(address, networks=Networks())
        with ExpertClient(address.url, networks=Networks()) as client, pytest.raises(ForbiddenAddressError):
            list(client.stream_chat("m", []))
        assert heard == []


def test_an_allowed_address_is_asked_by_its_name() -> None:
    with EchoExpert() as echo:
        url = echo.url.replace("127.0.0.1", "localhost")
        with ExpertClient(url, networks=Networks.parse(["127.0.0.0/8", "::1"])) as client:
            assert client.models() == ["echo"]
            assert client.chat("echo", [{"role": "user", "content": "hello"}]) == "hello"
        assert echo.last.headers["host"].startswith("localhost:")


def test_tls_is_still_for_the_name_and_not_for_the_address() -> None:
    seen: list[str | None] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = lambda _socket, name, _context: seen.append(name)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, pytest.raises(ssl.SSLError):
                context.wrap_socket(connection, server_side=True)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://localhost:{listener.getsockname()[1]}/v1"
        client = ExpertClient(url, networks=Networks.parse(["127.0.0.1"]))
        with client, pytest.raises(ConnectError, match="cannot be reached"):
            client.models()
        thread.join()
    assert seen == ["localhost"]
