"""The strategies, at the official package's import path."""

from flux_endpoint.serialize.combined import AllCodeStrategies, AllDataStrategies, CombinedCode
from flux_endpoint.serialize.serializer import DEFAULT_STRATEGY_CODE, DEFAULT_STRATEGY_DATA
from flux_endpoint.serialize.strategies import (
    DillCode,
    DillCodeSource,
    DillCodeTextInspect,
    DillDataBase64,
    JSONData,
    PickleCode,
    PureSourceDill,
    PureSourceTextInspect,
)

__all__ = [
    "DEFAULT_STRATEGY_CODE",
    "DEFAULT_STRATEGY_DATA",
    "AllCodeStrategies",
    "AllDataStrategies",
    "CombinedCode",
    "DillCode",
    "DillCodeSource",
    "DillCodeTextInspect",
    "DillDataBase64",
    "JSONData",
    "PickleCode",
    "PureSourceDill",
    "PureSourceTextInspect",
]
