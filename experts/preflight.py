"""Checks before a card is written: the URL answers, the model and the engine exist, memory suffices."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

from .adapter import check_fit, locate_adapter, read_adapter
from .backends import AdapterBackend, Address, EngineBackend, RemoteBackend
from .card import Card, CardError
from .client import ConnectError, ExpertClient, ExpertError, ForbiddenAddressError, KeyRefusedError, StatusError
from .networks import Networks
from .plan import Machine, plan_memory, this_machine
from .pool import engine_problem
from .records import ExpertRecord
from .weights import check as check_weights
from .weights import present

PROBE_TIMEOUT = 5.0  # seconds


def check_card(
    card: Card,
    existing: Sequence[ExpertRecord],
    machine: Machine | None = None,
    *,
    joined: bool = False,
    networks: Networks | None = None,
) -> None:
    """See whether a card that is right in itself can work here. Changes nothing.

    `machine` is what engines may use (this machine if None). `joined` says that engines run on a cluster elsewhere,
    whose memory, packages and local paths are not looked at.

    Raises:
        CardError: one sentence that says what is wrong and what to do.
    """
    others = [record.card for record in existing if not record.removed and record.name != card.name]
    if problem := engine_problem(card, others):
        raise CardError(problem)
    if isinstance(card.backend, RemoteBackend):
        _check_addresses(card.backend, networks)
    if isinstance(card.backend, EngineBackend) and not joined:
        _check_engine(card, card.backend, others, machine or this_machine())
    if isinstance(card.backend, AdapterBackend) and not joined:
        check_adapter(card.backend, others)


def check_adapter(backend: AdapterBackend, others: Sequence[Card]) -> None:
    """Read an adapter and compare it with its engine's base, where that is on this machine already.

    Raises:
        CardError: it is not there, it is damaged, or it does not fit; by the tensor's name.
    """
    adapter = read_adapter(locate_adapter(backend), backend)
    engine = next((other.backend for other in others if other.name == backend.engine), None)
    if isinstance(engine, EngineBackend) and engine.adapters is not None:
        check_fit(adapter, present(engine.model, engine.revision), engine.adapters)


def check_pool(
    cards: Sequence[Card], existing: Sequence[ExpertRecord], machine: Machine | None = None, *, joined: bool = False
) -> None:
    """See whether a whole pool fits beside what the registry holds. URLs are not probed: they may come up later.

    Raises:
        CardError: everything that is wrong, in one message.
    """
    names = {card.name for card in cards}
    others = [record.card for record in existing if not record.removed and record.name not in names]
    together = [*cards, *others]
    problems = [problem for card in cards if (problem := engine_problem(card, together))]
    if not joined:
        problems += _engine_problems(cards)
        problems += _adapter_problems(cards, together)
        problems += plan_memory(together, machine or this_machine()).problems
    if problems:
        raise CardError("; ".join(problems))


def _adapter_problems(cards: Sequence[Card], together: Sequence[Card]) -> Iterator[str]:
    for card in cards:
        if isinstance(card.backend, AdapterBackend):
            try:
                check_adapter(card.backend, together)
            except CardError as error:
                yield f"expert {card.name!r}: {error}"


def _check_addresses(backend: RemoteBackend, networks: Networks | None) -> None:
    """Ask all URLs at once, so that several that do not answer take no longer than one."""
    with ThreadPoolExecutor(len(backend.addresses)) as pool:
        asked = [pool.submit(probe_remote, address, networks=networks) for address in backend.addresses]
    problems = []
    for one in asked:
        try:
            one.result()
        except CardError as error:
            problems.append(str(error))
    if problems:
        raise CardError("; ".join(dict.fromkeys(problems)))


def probe_remote(address: Address, timeout: float = PROBE_TIMEOUT, networks: Networks | None = None) -> None:
    """Ask a URL for its models. With `networks` its address must be among them.

    A server without GET /models (404, 405) passes: some gateways have none.

    Raises:
        CardError: the key's variable is not set, nothing answers, it refuses the key, or it does not serve the model.
    """
    key = os.environ.get(address.api_key_env) if address.api_key_env else None
    if address.api_key_env and not key:
        raise CardError(f"the environment variable {address.api_key_env} with the key of {address.url} is not set")
    try:
        with ExpertClient(address.url, key, timeout, networks) as client:
            models = client.models()
    except ForbiddenAddressError as error:
        raise CardError(str(error)) from error
    except KeyRefusedError as error:
        raise CardError(f"{error}; {_key_hint(address)}") from error
    except ConnectError as error:
        raise CardError(f"{error}; check url, it must be an OpenAI base URL such as http://host:8000/v1") from error
    except StatusError as error:
        if error.status in (404, 405):
            return
        raise CardError(str(error)) from error
    except ExpertError as error:
        raise CardError(str(error)) from error
    if models and address.model not in models:
        listed = ", ".join(sorted(models)[:10])
        raise CardError(f"{address.url} does not serve the model {address.model!r}; it serves {listed}")


def _key_hint(address: Address) -> str:
    if address.api_key_env:
        return f"the environment variable {address.api_key_env} holds a key it does not accept"
    return "name the environment variable that holds the key as api_key_env"


def _check_engine(card: Card, backend: EngineBackend, others: Sequence[Card], machine: Machine) -> None:
    if problems := _engine_problems([card]):
        raise CardError(problems[0])
    plan = plan_memory([*others, card], machine)
    if not plan.fits:
        raise CardError(f"expert {card.name!r} does not fit: {plan.problems[0]}")


def _engine_problems(cards: Sequence[Card]) -> list[str]:
    engines = [(card.name, card.backend) for card in cards if isinstance(card.backend, EngineBackend)]
    missing = [package for package in ("ray", "vllm") if find_spec(package) is None]
    if engines and missing:
        return [f"engines need {' and '.join(missing)}; run: pip install 'collegium[cpu]' or 'collegium[gpu]'"]
    problems = []
    for name, backend in engines:
        try:
            check_weights(backend.model, backend.revision)
        except CardError as error:
            problems.append(f"expert {name!r}: {error}")
    return problems
