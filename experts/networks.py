"""Which addresses a remote expert may have: public ones, and the networks that the operator allows.

A card's URL must not lead into the machine's own network (server-side request forgery). Names are resolved once and the
connection goes to the address that was checked, so a name that changes its mind in between leads nowhere.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

VARIABLE = "COLLEGIUM_ALLOW_NETWORKS"

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Lookup = Callable[[str, int], Iterable[str]]

# What the standard library's tables miss in some versions: IANA's protocol assignments, site-local, discard-only.
_SPECIAL = tuple(map(ip_network, ("192.0.0.0/24", "fec0::/10", "100::/64", "2001::/23")))
_NAT64 = IPv6Network("64:ff9b::/96")
# Where clouds hand out credentials: denied inside allowed networks too, unless allowed by themselves.
_METADATA = frozenset(map(ip_address, ("169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254")))
_PORTS = (80, 443)


class AddressError(ValueError):
    """An address that a remote expert may not have; the message says how to allow it."""


@dataclass(frozen=True, slots=True)
class Networks:
    """Public addresses, and those inside `allowed`."""

    allowed: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, listed: Iterable[str]) -> Networks:
        """From CIDR notation.

        Raises:
            ValueError: one of them is no network.
        """
        return cls(tuple(_network(one.strip()) for one in listed if one.strip()))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Networks:
        """From COLLEGIUM_ALLOW_NETWORKS, comma-separated.

        Raises:
            ValueError: one of them is no network.
        """
        return cls.parse(environment.get(VARIABLE, "").split(","))

    @property
    def listed(self) -> str:
        """As COLLEGIUM_ALLOW_NETWORKS takes it."""
        return ",".join(map(str, self.allowed))

    def permit(self, address: str) -> bool:
        """Whether a connection may go there; an IPv4 address inside an IPv6 one counts as what it is."""
        found = ip_address(address.split("%")[0])
        return all(self._permit(one) for one in (found, *_inner(found)))

    def _permit(self, address: Address) -> bool:
        inside = [network for network in self.allowed if address in network]
        if address in _METADATA:
            return any(network.num_addresses == 1 for network in inside)
        special = address.is_multicast or address.is_reserved or any(address in network for network in _SPECIAL)
        return bool(inside) or (address.is_global and not special)

    def resolve(self, url: str, lookup: Lookup | None = None) -> list[str]:
        """The addresses of a URL's host that a connection may go to.

        Raises:
            AddressError: there is none, or the URL is none for an expert.
            OSError: the name cannot be resolved.
        """
        host, port = _host_and_port(url)
        found = list((lookup or _lookup)(host, port))
        permitted = [address for address in found if self.permit(address)]
        if found and not permitted:
            raise AddressError(
                f"{host} is at {found[0]}, which is not a public address; to allow it, start the server with "
                f"--allow-network {found[0]}"
            )
        return permitted


def _network(text: str) -> Network:
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a network; accepted: 10.0.0.0/8, 192.168.1.7, fd00::/8 ...") from error


def _inner(address: Address) -> list[Address]:
    """IPv4 addresses that an IPv6 address leads to: mapped, 6to4, Teredo, NAT64."""
    if isinstance(address, IPv4Address):
        return []
    teredo = address.teredo
    inner = [address.ipv4_mapped, address.sixtofour, teredo[1] if teredo else None]
    if address in _NAT64:
        inner.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in inner if one is not None]


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise AddressError("the URL's port must be a number from 1 to 65535") from error
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host:
        raise AddressError("the URL must be http://host... or https://host...")
    if not host.isascii():
        raise AddressError(f"the host {host!r} must be ASCII; write it in its xn-- form")
    port = port if port is not None else (443 if parts.scheme == "https" else 80)
    if port < 1024 and port not in _PORTS:
        raise AddressError(f"port {port} is not one for an expert; accepted: 80, 443, and 1024 or above")
    return host, port


def _lookup(host: str, port: int) -> list[str]:
    try:
        rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that is empty or too long
        raise AddressError(f"{host!r} is not a host name") from error
    return list(dict.fromkeys(str(row[4][0]) for row in rows))
