"""A lifecycle as a table: which event leads from which state to which."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Generic, TypeVar

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)


class StateTable(Generic[S, E]):
    """The transitions of one kind of object.

    Args:
        first: the initial states.
        transitions: by state, then by event; a state without transitions is final.
        groups: groups of states for the diagram: name and members, outer groups first.
    """

    def __init__(
        self,
        first: tuple[S, ...],
        transitions: Mapping[S, Mapping[E, S]],
        groups: Mapping[str, Collection[S]] | None = None,
    ) -> None:
        self.first = first
        self.transitions = transitions
        self._groups = groups or {}

    def after(self, state: S, event: E) -> S:
        """Return the state after `event`; the same state if the table has no such transition."""
        return self.transitions.get(state, {}).get(event, state)

    def is_final(self, state: S) -> bool:
        """Return whether no event leads out of `state`."""
        return not self.transitions.get(state)

    def diagram(self) -> str:
        """Return a Mermaid state diagram; a group's common transitions are drawn from the group."""
        everything = tuple(type(self.first[0]))
        members = {"": everything, **self._groups, **{_name(s): (s,) for s in everything}}
        arrows: dict[tuple[str, str], list[str]] = {}
        drawn: set[tuple[S, E]] = set()
        for name, group in list(members.items())[1:]:
            for event, target in self.transitions.get(next(iter(group)), {}).items():
                ways = {(state, event) for state in group}
                shared = all(self.transitions.get(each, {}).get(event) is target for each in group)
                if shared and not ways <= drawn and (len(group) == 1 or target not in group):
                    arrows.setdefault((name, _name(target)), []).append(event.value)
                    drawn |= ways
        lines: dict[str, list[str]] = {name: [] for name in ("", *self._groups)}

        def add(line: str, *ends: str) -> None:
            """Add a line to the smallest group that has all of `ends`."""
            states = {state for end in ends for state in members[end]}
            around = [g for g in lines if states <= {*members[g]} and g not in ends]
            lines[around[-1]].append(line)

        for state in self.first:
            add(f"[*] --> {_name(state)}", _name(state))
        for (source, target_name), events in arrows.items():
            add(f"{source} --> {target_name}: {', '.join(events)}", source, target_name)
        for state in everything:
            if self.is_final(state):
                add(f"{_name(state)} --> [*]", _name(state))
        for name in reversed(list(self._groups)):
            inner = [f"state {name} {{", *(f"    {line}" for line in lines.pop(name)), "}"]
            outer = [g for g in lines if {*members[name]} <= {*members[g]}][-1]
            lines[outer][:0] = inner
        return "\n".join(["stateDiagram-v2", *(f"    {line}" for line in lines[""])])


def _name(state: Enum) -> str:
    return state.name.lower()
