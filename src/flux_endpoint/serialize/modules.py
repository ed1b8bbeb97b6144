"""Modules that travel with a function, for endpoints that do not have them.

A function of such a module is serialized by its name, as dill does for any importable module, and
the sources of the modules with it. Where it is read, these become importable first; this needs
nothing but dill there.
"""

from __future__ import annotations

import base64
import builtins
import hashlib
import importlib.util
import json
import sys
import zlib
from collections.abc import Callable, Iterable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import dill

from flux_endpoint.errors import SerializationError

#: The most bytes of the sources of all modules, before they are compressed.
MAX_SOURCES = 64 * 2**20

#: Digests of the modules that were taken from this process, which must keep its own.
taken_here: set[str] = set()

#: Whether a module is a package, its path within the top-level one, and its source.
_Module = tuple[bool, str, str]


class CarriedModules:
    """The sources of modules and packages, as they are on disk now.

    Args:
        modules: importable modules, or their names; of a module in a package, all of the package
            is taken.

    Raises:
        SerializationError: a module has no source files, or not only these, or the sources are too
            large.
        TypeError: one is neither a module nor a name.
        ImportError: one can't be imported here.
    """

    def __init__(self, modules: Iterable[ModuleType | str]) -> None:
        sources: dict[str, _Module] = {}
        for module in modules:
            sources.update(_sources_of(_top_level(module)))
        size = sum(len(source) for _, _, source in sources.values())
        if size > MAX_SOURCES:
            raise SerializationError(
                f"the modules have {size} bytes of source, the limit is {MAX_SOURCES}: install "
                "them at the endpoint"
            )
        text = json.dumps(sources, sort_keys=True).encode()
        self.digest = hashlib.sha256(text).hexdigest()
        taken_here.add(self.digest)
        self._packed = base64.b85encode(zlib.compress(text)).decode()

    def with_function(
        self, function: Callable[..., Any], offload: Callable[[str], Any] | None = None
    ) -> CarryingFunction:
        """Return an object that is pickled as these modules and the function.

        Args:
            function: the function.
            offload: returns what is pickled instead of the modules, and unpickled as the modules:
                if they are large, a reference to a store. `None`: there is no store.
        """
        packed = self._packed if offload is None else offload(self._packed)
        return CarryingFunction(function, self.digest, packed)


class CarryingFunction:
    """Pickled as modules and a function; unpickled as the function, after the modules are there.

    Args:
        function: the function.
        digest: hash of the modules.
        packed: the modules, or what is unpickled as them.
    """

    def __init__(self, function: Callable[..., Any], digest: str, packed: Any) -> None:
        self._function = function
        self._digest = digest
        self._packed = packed

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _load_by_value, (self._digest, self._packed, dill.dumps(self._function))


def _top_level(module: ModuleType | str) -> ModuleType:
    name = module.__name__ if isinstance(module, ModuleType) else module
    if not isinstance(name, str):
        raise TypeError(f"modules must be modules or their names, got {type(module).__name__}")
    top = name.partition(".")[0]
    if top == "__main__":
        raise SerializationError(
            "__main__ can't travel as a module: what a function needs of the program itself goes "
            "into the function, or into a module of its own"
        )
    __import__(top)
    return sys.modules[top]


def _text_of(path: Path) -> str:
    try:
        return importlib.util.decode_source(path.read_bytes())
    except (SyntaxError, UnicodeDecodeError) as error:
        raise SerializationError(f"{path} is not Python source: {error}") from error


def _sources_of(module: ModuleType) -> dict[str, _Module]:
    """Return a module, or all modules of a package, by name.

    Args:
        module: a top-level module or package.
    """
    name = module.__name__
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    file = getattr(module, "__file__", None)
    if not folders and (file is None or not file.endswith(".py")):
        raise SerializationError(f"module {name} has no source file: install it at the endpoint")
    if not folders:
        return {name: (False, f"{name}.py", _text_of(Path(str(file))))}
    found: dict[str, _Module] = {name: (True, f"{name}/__init__.py", "")}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            within = path.relative_to(folder)
            # An editor's lock is a hidden link to nowhere, with the name of the module.
            if any(part.startswith(".") for part in within.parts) or not path.is_file():
                continue
            if path.name.endswith(tuple(EXTENSION_SUFFIXES)):
                raise SerializationError(
                    f"package {name} has compiled modules, such as {path.name}: install it at the "
                    "endpoint"
                )
            if path.suffix != ".py":
                continue
            parts = [name, *within.with_suffix("").parts]
            is_package = parts[-1] == "__init__"
            found[".".join(parts[:-1] if is_package else parts)] = (
                is_package,
                "/".join(parts) + ".py",
                _text_of(path),
            )
            for end in range(2, len(parts)):  # folders without __init__.py are packages, too
                package = parts[:end]
                found.setdefault(".".join(package), (True, "/".join([*package, "__init__.py"]), ""))
    return found


def _load(digest: str, packed: str, function: bytes) -> Any:
    """Make modules importable, instead of earlier ones of the same names; return the function.

    Where they come from, they stay as they are. It is pickled by value: it may use nothing of this
    module.
    """
    import base64  # noqa: PLC0415
    import importlib.abc  # noqa: PLC0415
    import importlib.machinery  # noqa: PLC0415
    import json  # noqa: PLC0415
    import sys  # noqa: PLC0415
    import zlib  # noqa: PLC0415

    import dill  # noqa: PLC0415

    class CarriedModulesFinder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
        def __init__(self, digest: str, sources: Any) -> None:
            self.digest, self.sources = digest, sources
            self.tops = {name.partition(".")[0] for name in sources}

        def find_spec(self, name: str, path: Any, target: Any = None) -> Any:  # noqa: ARG002
            if name not in self.sources:
                return None
            is_package, file, _ = self.sources[name]
            origin = f"carried/{file}"
            spec = importlib.machinery.ModuleSpec(name, self, origin=origin, is_package=is_package)
            spec.has_location = True  # gives the module `__file__`
            return spec

        def is_package(self, name: str) -> bool:
            return bool(self.sources[name][0])

        def get_source(self, name: str) -> str:
            return str(self.sources[name][2])

        def get_code(self, name: str) -> Any:
            _, file, source = self.sources[name]
            return compile(source, f"carried/{file}", "exec", dont_inherit=True)

    source = sys.modules.get("flux_endpoint.serialize.modules")
    taken_here = getattr(source, "taken_here", ())
    # An earlier finder's class was another one, made by an earlier call.
    known: list[Any] = [
        each for each in sys.meta_path if type(each).__name__ == "CarriedModulesFinder"
    ]
    if digest not in {*taken_here, *(each.digest for each in known)}:
        finder = CarriedModulesFinder(digest, json.loads(zlib.decompress(base64.b85decode(packed))))
        # Earlier states of the same modules, with the other modules of theirs, which refer to them.
        replaced = [each for each in known if finder.tops & each.tops]
        for each in replaced:
            sys.meta_path.remove(each)
        tops = finder.tops.union(*(each.tops for each in replaced))
        for name in [each for each in sys.modules if each.partition(".")[0] in tops]:
            del sys.modules[name]
        sys.meta_path.insert(0, finder)
    return dill.loads(function)  # noqa: S301 - a function of the same user


# With globals of its own it is pickled by value, so that it needs nothing of this package.
_load_by_value = FunctionType(_load.__code__, {"__builtins__": builtins}, "load_carried_modules")
