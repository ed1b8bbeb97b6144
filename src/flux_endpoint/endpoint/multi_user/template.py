"""The configuration template of user endpoints, filled with a user's values.

Every value that an expression of the template yields becomes a YAML value on one line: text is
quoted, so that it can't become another key, type or line. Templates are Jinja's, in its sandbox.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flux_endpoint import extras
from flux_endpoint.errors import ConfigurationError, suggestion

if TYPE_CHECKING:
    import jinja2

#: Names in a template that are not values of the user.
RESERVED = ("mapped_identity", "parent_config", "user_runtime", "_GC")
#: The most characters of a rendered configuration.
MAX_RENDERED = 256 * 1024
#: The most problems of values that a message lists.
_MOST_PROBLEMS = 5
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


class TemplateError(ConfigurationError):
    """The template, the schema or the user's values are invalid; the text is for the user."""


def as_yaml(value: Any) -> str:
    """Return plain data as YAML on one line, which any YAML reader reads as the same data.

    Raises:
        TypeError: it is no plain data.
    """
    match value:
        case str():
            return f'"{"".join(map(_escaped, value))}"'
        case None | bool() | int() | float():
            return json.dumps(value, allow_nan=False)
        case Mapping():
            items = (f"{as_yaml(str(key))}: {as_yaml(item)}" for key, item in value.items())
            return f"{{{', '.join(items)}}}"
        case list() | tuple():
            return f"[{', '.join(map(as_yaml, value))}]"
    raise TypeError(f"a {type(value).__name__} is no value for YAML")


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def check_values(values: Mapping[str, Any], schema: str | None, *, source: str) -> None:
    """Check a user's values by the endpoint's schema.

    Args:
        values: the `user_endpoint_config`.
        schema: text of a JSON schema; `None`: there is none.
        source: the schema's file, for messages.

    Raises:
        TemplateError: the values violate it, or it is no JSON schema.
    """
    reserved = [name for name in values if name in RESERVED]
    if reserved:
        raise TemplateError(f"user_endpoint_config: {reserved[0]!r} is a reserved name")
    if schema is None:
        return
    extras.require("multi-user", "a schema of user_endpoint_config")
    import jsonschema  # noqa: PLC0415 - optional
    import referencing  # noqa: PLC0415 - optional

    try:
        parsed = json.loads(schema)
        kind = jsonschema.validators.validator_for(parsed, jsonschema.Draft202012Validator)
        kind.check_schema(parsed)
        # The registry is empty: a `$ref` to another document is not fetched.
        validator = kind(parsed, registry=referencing.Registry())
        errors = sorted(
            validator.iter_errors(dict(values)), key=lambda each: list(map(str, each.path))
        )
    except (jsonschema.SchemaError, referencing.exceptions.Unresolvable) as error:
        raise TemplateError(f"{source} is no valid JSON schema: {str(error)[:300]}") from None
    except (ValueError, RecursionError) as error:
        raise TemplateError(f"{source} is not valid JSON: {error}") from None
    if errors:
        texts = [_problem(each.json_path, each.message) for each in errors[:_MOST_PROBLEMS]]
        raise TemplateError(f"user_endpoint_config: {'; '.join(texts)}")


def _problem(path: str, message: str) -> str:
    where = path.removeprefix("$").lstrip(".")
    text = message if len(message) <= 300 else f"{message[:300]}…"
    return f"{where}: {text}" if where else text


def render(
    template: str,
    values: Mapping[str, Any],
    *,
    user_runtime: Mapping[str, Any],
    mapped_identity: Mapping[str, Any],
    source: str,
) -> str:
    """Return the configuration of a user endpoint.

    Args:
        template: the template's text.
        values: the user's values, its `user_endpoint_config`.
        user_runtime: description of the submitting program.
        mapped_identity: the account that runs the tasks, as `{"local": {...}, "globus": {...}}`.
        source: the template's file, for messages.

    Raises:
        TemplateError: the template is invalid, needs a value that is missing, or uses no value of a
            name that was given.
        ConfigurationError: Jinja is not installed.
    """
    extras.require("multi-user", "a configuration template")
    import jinja2  # noqa: PLC0415 - optional
    import jinja2.meta  # noqa: PLC0415 - optional

    environment = _environment()
    ours = {"user_runtime": dict(user_runtime), "mapped_identity": dict(mapped_identity)}
    try:
        used = jinja2.meta.find_undeclared_variables(environment.parse(template))
        _check_used(values, used)
        text = environment.from_string(template).render({**values, **ours, "_GC": ours})
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"{source}, line {error.lineno}: {error.message}") from None
    except jinja2.UndefinedError as error:
        raise TemplateError(
            "user_endpoint_config lacks a value that the endpoint's template needs: "
            f"{error.message}"
        ) from None
    except TemplateError:
        raise
    except Exception as error:  # noqa: BLE001 - a template's expressions can raise anything
        kind = type(error).__name__
        raise TemplateError(f"{source} can't be rendered: {kind}: {str(error)[:500]}") from None
    if len(text) > MAX_RENDERED:
        raise TemplateError(f"{source} renders to more than {MAX_RENDERED} characters")
    return text


def _check_used(values: Mapping[str, Any], used: set[str]) -> None:
    known = sorted(used.difference(RESERVED))
    for name in values:
        if name not in used:
            hint = suggestion(name, known, "it takes:") if known else "it takes no values"
            raise TemplateError(
                f"user_endpoint_config: the endpoint's template has no use for {name!r}; {hint}"
            )


def _environment() -> jinja2.Environment:
    import jinja2.sandbox  # noqa: PLC0415 - optional

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, finalize=_finalized, keep_trailing_newline=True
    )
    environment.filters["shell_escape"] = lambda value: shlex.quote(str(value))
    return environment


def _finalized(value: Any) -> str:
    import jinja2  # noqa: PLC0415 - optional

    if isinstance(value, jinja2.Undefined):
        return str(value)  # raises, with the name of what is missing
    return as_yaml(value)
