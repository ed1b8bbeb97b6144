"""Flux's bindings: from Flux itself, or from flux-python, whose release may differ from Flux's."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from flux_endpoint.engine import flux_bindings
from flux_endpoint.engine.flux_backend import FluxBackend
from flux_endpoint.engine.flux_bindings import flux_python_release, mismatch
from flux_endpoint.errors import EngineError


def put_flux_python(directory: Path, version: str, flux: ModuleType) -> None:
    """Create the metadata of a flux-python that provides the modules of `flux`."""
    info = directory / f"flux_python-{version}.dist-info"
    info.mkdir()
    head = "Metadata-Version: 2.1\nName: flux-python\n"
    (info / "METADATA").write_text(f"{head}Version: {version}\n")
    (directory / "flux").symlink_to(flux.__path__[0])


@pytest.fixture
def package(tmp_path: Path) -> ModuleType:
    """A package `flux` somewhere."""
    module = ModuleType("flux")
    module.__path__ = [str(tmp_path / "elsewhere" / "flux")]
    return module


def test_flux_python_is_recognized_by_what_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: ModuleType
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert flux_python_release(package) is None
    put_flux_python(tmp_path, "0.75.0", package)
    assert flux_python_release(package) == "0.75.0"
    package.__path__ = ["/usr/lib/flux/python3.11/flux"]  # Flux's own come first
    assert flux_python_release(package) is None


@pytest.mark.parametrize(
    ("bindings", "running"),
    [(None, "0.88.0"), ("0.88.0", "0.88.0"), ("0.88.0.post1", "0.88.0-12-g1a2b3c4")],
)
def test_bindings_of_the_running_release_are_no_mismatch(
    bindings: str | None, running: str
) -> None:
    assert mismatch(bindings, running) is None


def test_a_mismatch_names_both_releases_and_the_remedy() -> None:
    said, mend = mismatch("0.88.0", "0.75.0-3-g1a2b3c4") or ("", "")
    assert said.endswith("of flux-python 0.88.0, the running Flux is 0.75.0-3-g1a2b3c4")
    assert mend.startswith("pip install 'flux-python==0.75.*'")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ImportError("No module named 'ply'", name="ply"), "[flux]"),
        (ImportError("No module named 'flux'", name="flux"), "[flux-python]"),
        (ImportError("libflux-core.so.2: cannot open shared object file"), "LD_LIBRARY_PATH"),
    ],
)
def test_bindings_that_can_not_be_imported_have_a_remedy(
    monkeypatch: pytest.MonkeyPatch, error: ImportError, remedy: str
) -> None:
    def fail() -> ModuleType:
        raise error

    monkeypatch.setattr(flux_bindings, "_import", fail)
    monkeypatch.setattr(flux_bindings, "_bindings_path", list)
    with pytest.raises(EngineError) as caught:
        flux_bindings.import_flux()
    assert remedy in str(caught.value)


@pytest.mark.flux
def test_the_engine_warns_of_bindings_of_another_release(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flux_module: ModuleType,
    flux_uri: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put_flux_python(tmp_path, "0.75.0", flux_module)
    monkeypatch.syspath_prepend(tmp_path)
    FluxBackend(flux_uri).close()
    assert "those of flux-python 0.75.0, the running Flux is" in caplog.text


@pytest.mark.flux
def test_bindings_that_lack_a_module_are_an_error_of_the_engine(
    monkeypatch: pytest.MonkeyPatch, flux_module: ModuleType, flux_uri: str
) -> None:
    monkeypatch.setitem(sys.modules, "flux.resource", None)  # its import fails
    with pytest.raises(EngineError, match="bindings can't be imported"):
        FluxBackend(flux_uri)
