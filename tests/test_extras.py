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


def installed_from(directory: Path, origin: object, version: str = "0.1.0") -> None:
    """Create the metadata of an installed package as pip does.

    Args:
        directory: the directory of installed packages.
        origin: content of its `direct_url.json`; `None`: there is no such file.
        version: its version.
    """
    info = directory / f"flux_endpoint-{version}.dist-info"
    info.mkdir()
    head = "Metadata-Version: 2.1\nName: flux-endpoint\nVersion: "
    (info / "METADATA").write_text(f"{head}{version}\n")
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
    ("origin", "target"),
    [
        (
            {"url": "ssh://git@example.org/it", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "'flux-endpoint[service] @ git+ssh://git@example.org/it@abc'",
        ),
        (
            {"url": "https://example.org/it.whl", "archive_info": {}},
            "'flux-endpoint[service] @ https://example.org/it.whl'",
        ),
    ],
    ids=["git", "archive"],
)
def test_an_extra_comes_from_the_address_that_the_package_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: object, target: str
) -> None:
    installed_from(tmp_path, origin)
    monkeypatch.syspath_prepend(tmp_path)
    assert extras.install_command("service") == f"pip install {target}"


def test_an_extra_comes_from_the_wheel_that_the_package_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "flux_endpoint-0.1.0-py3-none-any.whl"
    wheel.touch()
    installed_from(tmp_path, {"url": wheel.as_uri(), "archive_info": {}})
    monkeypatch.syspath_prepend(tmp_path)
    assert extras.install_command("flux") == f"pip install '{wheel}[flux]'"
    assert extras.install_command() == f"pip install {wheel}"


@pytest.mark.parametrize("origin", [None, {"url": "file:///nowhere/it", "dir_info": {}}, [], 1])
def test_from_an_unknown_source_any_checkout_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: object
) -> None:
    installed_from(tmp_path, origin)
    monkeypatch.syspath_prepend(tmp_path)
    command = "pip install '.[flux]' in a checkout of Flux Endpoint"
    assert extras.install_command("flux") == command


@pytest.mark.parametrize(
    ("version", "installer", "is_named"),
    [
        ("1.2.0", "pip", True),
        ("1.2.0rc1", "uv", True),
        ("1.2.0", "conda", False),
        ("1.2.1.dev3", "pip", False),
        ("1.2.0+g1a2b3c4", "pip", False),
    ],
)
def test_the_index_is_meant_only_if_a_release_came_from_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, installer: str, is_named: bool
) -> None:
    installed_from(tmp_path, None, version=version)
    (tmp_path / f"flux_endpoint-{version}.dist-info" / "INSTALLER").write_text(f"{installer}\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = extras.install_command("mpi")
    assert (said == f"pip install 'flux-endpoint[mpi]=={version}'") is is_named
    assert ("in a checkout" in said) is not is_named


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
    wrong = re.compile(r"\binstall\s+['\"]?flux-endpoint\b(?!/)")
    said = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("src", "docs", "examples", "deploy", "spack", "flux_plugins", "benchmarks")
        for path in [*(ROOT / folder).rglob("*"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
        if path.is_file() and path.suffix not in {".pyc", ".svg"}
        for line in path.read_text(errors="replace").splitlines()
        if wrong.search(line)
    ]
    assert said == []
