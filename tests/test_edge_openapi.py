"""docs/openapi.yaml holds at a running edge, for requests made from it and for the same with something wrong in them.

`pytest -m slow tests/test_edge_openapi.py --size 1000` makes that many of each operation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import cast

import pytest
import yaml
from collegium.serve.errors import KINDS
from collegium.serve.requests import Api
from collegium.serve.settings import EdgeSettings
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from serve_kit import Running, running

Schema = Mapping[str, object]
DOCUMENT = Path(__file__).parent.parent / "docs" / "openapi.yaml"
NOT_THIS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)  # fmt: skip


@cache
def document() -> dict[str, object]:
    loaded: dict[str, object] = yaml.safe_load(DOCUMENT.read_text())
    return loaded


def resolved(schema: object) -> dict[str, object]:
    """The schema itself, where it is a reference."""
    found = cast("dict[str, object]", schema)
    if "$ref" in found:
        place: object = document()
        for part in str(found["$ref"]).removeprefix("#/").split("/"):
            place = cast("dict[str, object]", place)[part]
        return resolved(place)
    return found


def values(schema: object) -> st.SearchStrategy[object]:
    """What fits a schema of those kinds that the document uses."""
    found = resolved(schema)
    if "examples" in found:
        return st.sampled_from(cast("list[object]", found["examples"]))
    if "const" in found:
        return st.just(found["const"])
    if "enum" in found:
        return st.sampled_from(cast("list[object]", found["enum"]))
    if "anyOf" in found:
        return st.one_of([values(one) for one in cast("list[object]", found["anyOf"])])
    low, high = cast("int", found.get("minimum")), cast("int", found.get("maximum"))
    match found["type"]:
        case "object":
            needed = cast("list[str]", found.get("required", []))
            parts = cast("dict[str, object]", found.get("properties", {}))
            return cast(
                "st.SearchStrategy[object]",
                st.fixed_dictionaries(
                    {name: values(parts[name]) for name in needed},
                    optional={name: values(part) for name, part in parts.items() if name not in needed},
                ),
            )
        case "array":
            least = cast("int", found.get("minItems", 0))
            return cast("st.SearchStrategy[object]", st.lists(values(found["items"]), min_size=least, max_size=3))
        case "integer":
            return st.integers(low, high)
        case "number":
            return st.floats(low, high)
        case "boolean":
            return st.booleans()
        case _:
            return st.text(max_size=40)


@st.composite
def wrong(draw: st.DrawFn, schema: object) -> object:
    """What fits, but for one field that is replaced, or left out, or one too many."""
    body = cast("dict[str, object]", draw(values(schema)))
    name = draw(st.sampled_from([*body, "extra", "api_base"]))
    if draw(st.booleans()) and name in body:
        del body[name]
    else:
        body[name] = draw(NOT_THIS)
    return body


def operations() -> Iterator[tuple[str, str, dict[str, object]]]:
    for path, methods in cast("dict[str, dict[str, dict[str, object]]]", document()["paths"]).items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def check_answer(operation: Schema, status: int, kind: str, raw: bytes) -> None:
    """Status, content type and body are among those that the document promises."""
    promised = cast("dict[str, object]", operation["responses"])
    assert str(status) in promised or "default" in promised, (status, raw)
    content = cast(
        "dict[str, dict[str, object]]", resolved(promised.get(str(status), promised.get("default")))["content"]
    )
    assert kind.partition(";")[0] in content, kind
    if kind == "application/json":
        schema = {**resolved(content[kind]["schema"]), "components": document()["components"]}
        Draft202012Validator(schema).validate(json.loads(raw))


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(Path(tmp_path_factory.mktemp("openapi")), EdgeSettings(breaker_failures=10**9)) as started:
        yield started


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    ("path", "method", "operation"), list(operations()), ids=lambda one: str(one) if isinstance(one, str) else ""
)
def test_every_operation(
    edge: Running, request: pytest.FixtureRequest, path: str, method: str, operation: dict[str, object]
) -> None:
    count = request.config.getoption("size") or 100
    url = f"{edge.url}{path.replace('{id}', 'auto')}"

    def sent(body: object) -> None:
        answer = edge.http.request(method, url, json=body) if body is not None else edge.http.request(method, url)
        assert answer.status_code < 500, answer.text
        check_answer(operation, answer.status_code, answer.headers["content-type"], answer.content)

    if "requestBody" not in operation:
        sent(None)
        return
    content = cast("dict[str, dict[str, object]]", resolved(operation["requestBody"])["content"])
    schema = content["application/json"]["schema"]
    bodies = st.one_of(values(schema), wrong(schema))
    limits = settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    limits(seed(request.config.getoption("first_seed"))(given(bodies)(sent)))()


def test_the_document_names_the_apis_and_every_status() -> None:
    assert {f"/v1/{api}" for api in Api} <= {path for path, _, _ in operations()}
    told = {
        status for path, _, operation in operations() for status in cast("dict[str, object]", operation["responses"])
    }
    public = {str(kind.status) for code, kind in KINDS.items() if kind.status not in (405, 409, 431, 500)}
    assert public <= told
