"""Converts objects to text and back, wire-identical to the official strategies."""

from flux_endpoint.serialize.combined import (
    AllCodeStrategies,
    AllDataStrategies,
    CombinedCode,
    ComboSerializationStrategy,
)
from flux_endpoint.serialize.packing import (
    buffers_of_task,
    pack_buffers,
    task_with_inputs,
    unpack_buffers,
)
from flux_endpoint.serialize.selection import (
    AllowlistWildcard,
    DeserializerAllowlist,
    Strategylike,
    ValidatedStrategylike,
    validate_strategylike,
)
from flux_endpoint.serialize.serializer import (
    DEFAULT_STRATEGY_CODE,
    DEFAULT_STRATEGY_DATA,
    ComputeSerializer,
)
from flux_endpoint.serialize.state import State, never_changes, same_state
from flux_endpoint.serialize.strategies import (
    IDENTIFIER_LENGTH,
    DillCode,
    DillCodeSource,
    DillCodeTextInspect,
    DillDataBase64,
    JSONData,
    PickleCode,
    PureSourceDill,
    PureSourceTextInspect,
    SerializationStrategy,
    StrategyError,
    prefer_for_type,
    reading_as,
    written_by_pickle,
)

__all__ = [
    "DEFAULT_STRATEGY_CODE",
    "DEFAULT_STRATEGY_DATA",
    "IDENTIFIER_LENGTH",
    "AllCodeStrategies",
    "AllDataStrategies",
    "AllowlistWildcard",
    "CombinedCode",
    "ComboSerializationStrategy",
    "ComputeSerializer",
    "DeserializerAllowlist",
    "DillCode",
    "DillCodeSource",
    "DillCodeTextInspect",
    "DillDataBase64",
    "JSONData",
    "PickleCode",
    "PureSourceDill",
    "PureSourceTextInspect",
    "SerializationStrategy",
    "State",
    "StrategyError",
    "Strategylike",
    "ValidatedStrategylike",
    "buffers_of_task",
    "never_changes",
    "pack_buffers",
    "prefer_for_type",
    "reading_as",
    "same_state",
    "task_with_inputs",
    "unpack_buffers",
    "validate_strategylike",
    "written_by_pickle",
]
