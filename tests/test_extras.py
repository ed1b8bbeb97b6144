"""Extras: missing modules are detected, and the suggested command installs them."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from flux_endpoint import extras
from flux_endpoint.errors import ConfigurationError

ROOT = Path(__file__).parents[1]


def installed_from(directory: Path, origin: object) -> None:
    """Create the metadata of an installed package as pip does.

    Args:
        directory: the directory of installed packages.
        origin: content of its `direct_url.json`; `None`: there is no such file.
    """
    info = directory / "flux_endpoint-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flux-endpoint\nVersion: 0.1.0\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))


def test_every_extra_is_one_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.MODULES) == set(project["optional-dependencies"]) - {"all"}


@pytest.mark.parametrize(("editable", "option"), [(True, "--editable "), (False, "")])
def test_an_extra_comes_from_the_checkout_that_the_package_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, editable: bool, option: str
) -> None:
    checkout = tmp_path / "my checkout"
    checkout.mkdir()
    (checkout / "pyproject.toml").touch()
    origin = {"url": checkout.as_uri(), "dir_info": {"editable": editable} if editable else {}}
    installed_from(tmp_path, origin)
    monkeypatch.syspath_prepend(tmp_path)
    command = f"pip install {option}'{checkout}[service]'"
    assert extras.install_command("service") == command


@pytest.mark.parametrize(
    "origin",
    [
        None,
        {"url": "file:///nowhere/flux-endpoint", "dir_info": {}},
        {"url": "https://example.org/wheel", "archive_info": {}},
        {"url": "ssh://git@example.org/it", "vcs_info": {"vcs": "git"}},
        [],
    ],
    ids=str,
)
def test_without_that_checkout_any_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: object
) -> None:
    installed_from(tmp_path, origin)
    monkeypatch.syspath_prepend(tmp_path)
    command = "pip install '.[flux]' in a checkout of Flux Endpoint"
    assert extras.install_command("flux") == command


def test_a_missing_package_is_named_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extras.require("service", "this")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert extras.missing("service") == ["uvicorn"]
    with pytest.raises(ConfigurationError) as caught:
        extras.require("service", "this")
    command = extras.install_command("service")
    assert str(caught.value) == f"this needs the Python package 'uvicorn': {command}"


def test_no_text_suggests_an_index_without_a_release() -> None:
    wrong = re.compile(r"install\s+['\"]?flux-endpoint\b(?!/)")
    said = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("src", "docs", "examples", "deploy", "spack", "flux_plugins", "benchmarks")
        for path in [*(ROOT / folder).rglob("*"), ROOT / "README.md"]
        if path.is_file() and path.suffix not in {".pyc", ".svg"}
        for line in path.read_text(errors="replace").splitlines()
        if wrong.search(line)
    ]
    assert said == []
