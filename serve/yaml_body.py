"""Cards in request bodies: JSON as strict as elsewhere, and YAML without aliases or duplicate keys."""

from __future__ import annotations

from typing import Any

import yaml

from .errors import ApiError
from .strict_json import loads

YAML_KINDS = ("application/yaml", "application/x-yaml", "text/yaml")


class _StrictLoader(yaml.SafeLoader):
    """Aliases can blow a small text up to gigabytes, and a key given twice hides the first."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not accepted")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if len(keys) != len({str(key) for key in keys}):
            raise yaml.YAMLError("a key is given twice")
        return super().construct_mapping(node, deep)


def parse_body(raw: bytes, content_type: str) -> object:
    """The value of a JSON or YAML body.

    Raises:
        ApiError: invalid_json, invalid_unicode, invalid_value or unsupported_media_type.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return loads(raw)
    if kind not in YAML_KINDS:
        raise ApiError("unsupported_media_type", f"Content-Type must be application/json or {YAML_KINDS[0]}.")
    try:
        return yaml.load(raw.decode("utf-8"), _StrictLoader)  # noqa: S506 - a SafeLoader, stricter
    except UnicodeDecodeError as error:
        raise ApiError("invalid_unicode", "The body is not valid UTF-8.", "body") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ApiError("invalid_value", f"The body is not acceptable YAML: {reason}", "body") from error
