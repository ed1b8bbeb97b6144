"""Pages of the reference that come from the program: the REST API, and options of `config.yaml`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.endpoint.multi_user.config import MultiUserConfig
from flux_endpoint.engine.config import BlocksConfig, FluxEngineConfig
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings

_CONFIGS: dict[str, tuple[str, type[BaseModel]]] = {
    "Endpoint": ("At the top level.", EndpointConfig),
    "Engine": ("Under `engine:`.", FluxEngineConfig),
    "Blocks": (
        "Under `engine.blocks:`. [Blocks](../allocations.md) are allocations.",
        BlocksConfig,
    ),
    "Multi-user endpoint": (
        "At the top level, with `multi_user: true`: [Multi-user endpoints](../multi-user.md).",
        MultiUserConfig,
    ),
}
_URLS = {each: f"amqp://{each[0]}:x@localhost/x" for each in ("service", "endpoint", "client")}


def configuration() -> str:
    """Return the tables of all options."""
    parts = []
    for title, (where, model) in _CONFIGS.items():
        parts.append(f"## {title}\n\n{where}\n\n| option | default | |\n|---|---|---|\n")
        for name, default, text in options(model):
            parts.append(f"| `{name}` | {default} | {text} |\n")
        parts.append("\n")
    return "".join(parts)


def options(model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    """Return name, default and description of a model's options."""
    comments: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if issubclass(each, BaseModel) and each is not BaseModel:
            comments.update(_comments(inspect.getsource(each)))
    for name, field in model.model_fields.items():
        default = "" if field.is_required() else field.get_default(call_default_factory=True)
        plain = default is None or isinstance(default, (str, int, float))
        shown = f"`{default}`" if plain and default not in (None, "") else ""
        yield name, shown, _cell(comments.get(name, ""))


def _comments(source: str) -> dict[str, str]:
    """Return the `#:` comments above the fields in a class's source, by field."""
    found: dict[str, str] = {}
    text: list[str] = []
    for line in source.splitlines():
        if line.startswith("    #:"):
            text.append(line.strip().removeprefix("#:").strip())
        elif text:
            if named := re.match(r"    (\w+): ", line):
                found[named[1]] = " ".join(text)
            text = []
    return found


def rest() -> str:
    """Return all requests."""
    settings = ServiceSettings(
        database_url="sqlite://",
        amqp_url=_URLS["service"],
        endpoint_amqp_url=_URLS["endpoint"],
        client_amqp_url=_URLS["client"],
        shared_broker_accounts=True,
    )
    schema = create_app(settings).openapi()
    parts = []
    for path, requests in sorted(schema["paths"].items(), key=lambda each: _by_noun(each[0])):
        for method, request in requests.items():
            parts.extend(_request(f"{method.upper()} {path}", request, schema))
    return "".join(parts)


def _by_noun(path: str) -> tuple[str, str]:
    """Return a key that puts paths of one noun together, whatever their version."""
    return re.sub(r"^/v\d", "", path), path


def _request(title: str, request: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    text = request.get("description") or request.get("summary") or ""
    yield f"## {title}\n\n{text}\n\n"
    rows = [
        (f"{each['in']} `{each['name']}`", _kind(each["schema"], schema))
        for each in request.get("parameters", [])
        if each["name"] != "authorization"
    ]
    for content in request.get("requestBody", {}).get("content", {}).values():
        rows += [(f"body `{name}`", kind) for name, kind in _fields(content["schema"], schema)]
    answer = request["responses"].get("200", {}).get("content", {}).get("application/json", {})
    rows += [(f"answer `{name}`", kind) for name, kind in _fields(answer.get("schema", {}), schema)]
    if rows:
        yield "| | |\n|---|---|\n"
        yield from (f"| {name} | {_cell(kind)} |\n" for name, kind in rows)
        yield "\n"


def _fields(part: dict[str, Any], schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Return names and types of an object's fields; of an array, those of its items."""
    if part.get("type") == "array":
        part = part["items"]
    part = _resolved(next(iter(part.get("anyOf", [part]))), schema)
    required = part.get("required", [])
    for name, field in part.get("properties", {}).items():
        yield name, _kind(field, schema) + ("" if name in required else ", optional")


def _resolved(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    found: dict[str, Any] = schema["components"]["schemas"][part["$ref"].rpartition("/")[2]]
    return found


def _kind(part: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return a type in words: `text`, `list of integer`, the names of an object's fields."""
    if "anyOf" in part:
        kinds = [_kind(each, schema) for each in part["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    part = _resolved(part, schema)
    if "enum" in part:
        return ", ".join(f"`{each}`" for each in part["enum"])
    if "const" in part:
        return f"`{part['const']}`"
    kind = part.get("type", "any value")
    if kind == "array":
        return f"list of {_kind(part.get('items', {}), schema)}"
    if kind == "object" and part.get("properties"):
        return "object: " + ", ".join(f"`{name}`" for name in part["properties"])
    return {"string": "text"}.get(kind, kind)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
