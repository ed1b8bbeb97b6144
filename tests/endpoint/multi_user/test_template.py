"""A user's values in the template of user endpoints."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flux_endpoint.endpoint.config import parse_config
from flux_endpoint.endpoint.multi_user.config import SCHEMA, TEMPLATE
from flux_endpoint.endpoint.multi_user.initial import initial_files
from flux_endpoint.endpoint.multi_user.template import (
    TemplateError,
    as_yaml,
    check_values,
    render,
)

ACCOUNT = {"local": {"uname": "ada", "uid": 5000}}

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def rendered(template: str, **values: Any) -> str:
    return render(
        template,
        values,
        user_runtime={"python_version": "3.11"},
        mapped_identity=ACCOUNT,
        source=TEMPLATE,
    )


@settings(max_examples=50)
@given(plain)
def test_a_value_is_read_back_as_it_was_and_adds_no_key(value):
    try:
        json.dumps(value).encode()
        str(value).encode()
    except UnicodeEncodeError:  # a lone surrogate is no JSON text from the service
        return
    text = rendered("a: {{ x }}\nb: 1\n", x=value)
    assert yaml.safe_load(text) == {"a": value, "b": 1}


@pytest.mark.parametrize(
    "value", ["x\nengine: {}", '"}, y: {', "{{ y }}", "# no", "- a", "no", "1e3", "~", "\x85\u2028"]
)
def test_text_stays_text(value):
    assert yaml.safe_load(rendered("a: {{ x }}\n", x=value)) == {"a": value}


def test_values_are_combined_before_they_are_quoted():
    text = rendered("a: {{ 'proj-' ~ x }}\nb: {{ x | shell_escape }}\n", x="it's")
    assert yaml.safe_load(text) == {"a": "proj-it's", "b": """'it'"'"'s'"""}


def test_the_template_knows_the_account_and_the_submitting_program():
    text = rendered(
        "a: {{ mapped_identity.local.uname }}\nb: {{ _GC.user_runtime.python_version }}\n"
    )
    assert yaml.safe_load(text) == {"a": "ada", "b": "3.11"}


@pytest.mark.parametrize(
    ("template", "values", "error"),
    [
        ("a: {{ x }}", {}, "lacks a value that the endpoint's template needs: 'x' is undefined"),
        ("a: {{ x.y }}", {"x": {}}, "has no attribute 'y'"),
        ("{% if x %}{% endif %}", {}, "'x' is undefined"),
        ("a: {{ walltime }}", {"walltme": 1, "walltime": 2}, "no use for 'walltme'; did you mean"),
        ("a: 1", {"x": 1}, "no use for 'x'; it takes no values"),
        ("a: {{", {}, f"{TEMPLATE}, line 1: "),
        ("a: {{ ''.__class__ }}", {}, "SecurityError"),
        ("a: {{ x.append(1) }}", {"x": []}, "SecurityError"),
        ("a: {% include '/etc/passwd' %}", {}, "no loader"),
        ("a: {{ 1 / 0 }}", {}, "ZeroDivisionError"),
        ("{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}", {}, "renders to more than"),
        ("a: {{ x.items }}", {"x": {}}, "is no value for YAML"),
    ],
)
def test_what_can_not_be_rendered_is_said(template, values, error):
    with pytest.raises(TemplateError) as caught:
        rendered(template, **values)
    assert error in str(caught.value)


def test_what_is_not_data_is_no_value():
    with pytest.raises(TypeError, match="a set is no value for YAML"):
        as_yaml({1})


LIMITS = json.dumps(
    {"properties": {"nodes": {"type": "integer", "maximum": 4}}, "additionalProperties": False}
)


def test_values_are_checked_by_the_schema():
    check_values({"nodes": 4}, LIMITS, source=SCHEMA)
    check_values({"anything": 1}, None, source=SCHEMA)
    with pytest.raises(TemplateError) as caught:
        check_values({"nodes": 5, "bank": "x"}, LIMITS, source=SCHEMA)
    assert "nodes: 5 is greater than the maximum of 4" in str(caught.value)
    assert "('bank' was unexpected)" in str(caught.value)
    with pytest.raises(TemplateError, match=r"nodes: '4' is not of type 'integer'"):
        check_values({"nodes": "4"}, LIMITS, source=SCHEMA)


@pytest.mark.parametrize("name", ["user_runtime", "mapped_identity", "parent_config", "_GC"])
def test_reserved_names_are_no_values(name):
    with pytest.raises(TemplateError, match=f"'{name}' is a reserved name"):
        check_values({name: 1}, None, source=SCHEMA)


@pytest.mark.parametrize(
    ("schema", "error"),
    [
        ("{", "not valid JSON"),
        ('{"type": "integr"}', "no valid JSON schema"),
        ('{"$ref": "http://127.0.0.1:1/schema"}', "no valid JSON schema"),  # it is not fetched
    ],
)
def test_an_invalid_schema_is_said(schema, error):
    with pytest.raises(TemplateError) as caught:
        check_values({"a": 1}, schema, source=SCHEMA)
    assert error in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [{}, {"nodes": 2}, {"nodes": 2, "walltime": "30m", "worker_init": "module load gcc\nx: 'y'"}],
)
def test_the_initial_template_and_schema_make_a_configuration(values):
    files = initial_files("lab", None, is_root=False)
    check_values(values, files[SCHEMA], source=SCHEMA)
    config = parse_config(rendered(files[TEMPLATE], **values), source=TEMPLATE)
    assert config.engine.worker_init == values.get("worker_init", "")
    assert (config.engine.blocks is not None) == ("nodes" in values)
    assert config.stop_when_idle == 300


@pytest.mark.parametrize("values", [{"nodes": 17}, {"walltime": "1h"}, {"nodes": 1, "zzz": 1}])
def test_the_initial_schema_refuses(values):
    files = initial_files("lab", None, is_root=False)
    with pytest.raises(TemplateError):
        check_values(values, files[SCHEMA], source=SCHEMA)
