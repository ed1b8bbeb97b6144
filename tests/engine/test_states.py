"""The lifecycles as tables: no event leads out of them, and each task ends exactly once."""

from __future__ import annotations

from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.engine.blocks.states import BLOCK_STATES, BlockChange, BlockState
from flux_endpoint.engine.held.states import HOST_STATES
from flux_endpoint.engine.instance_state import (
    PHASES,
    Fate,
    InstanceChange,
    InstanceCondition,
    InstancePhase,
    InstanceState,
)
from flux_endpoint.engine.jobs.states import JOB_STATES, PROGRESS, JobChange, JobState
from flux_endpoint.engine.state_table import StateTable
from flux_endpoint.engine.workers.states import MANAGER_STATES, ManagerChange, ManagerState

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"
TABLES = {
    "job": JOB_STATES,
    "block": BLOCK_STATES,
    "host of a held allocation": HOST_STATES,
    "worker manager": MANAGER_STATES,
    "Flux instance": PHASES,
}

table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())


def states_of(table: StateTable[Any, Any]) -> type[Enum]:
    return type(table.first[0])


def events_of(table: StateTable[Any, Any]) -> type[Enum]:
    return type(next(iter(next(iter(table.transitions.values())))))


def walk(table: StateTable[Any, Any], first: Enum, events: list[Any]) -> list[Any]:
    states: list[Any] = [first]
    for event in events:
        states.append(table.after(states[-1], event))
    return states


@table
@given(data=st.data())
def test_no_event_in_any_order_leads_out_of_the_table(
    table: StateTable[Any, Any], data: st.DataObject
) -> None:
    events = data.draw(st.lists(st.sampled_from(list(events_of(table)))))
    states = walk(table, data.draw(st.sampled_from(table.first)), events)
    assert all(isinstance(state, states_of(table)) for state in states)
    for before, event, after in zip(states, events, states[1:], strict=False):
        assert after in {before, table.transitions.get(before, {}).get(event)}
        assert after is before or not table.is_final(before)


@table
def test_every_state_can_be_reached_and_left_for_an_end(table: StateTable[Any, Any]) -> None:
    reached: set[Any] = set(table.first)
    while (
        more := {target for each in reached for target in table.transitions.get(each, {}).values()}
        - reached
    ):
        reached |= more
    assert reached == set(states_of(table))
    ends = {state for state in states_of(table) if table.is_final(state)}
    while more := {
        state
        for state, events in table.transitions.items()
        if state not in ends and ends.intersection(events.values())
    }:
        ends |= more
    assert ends == set(states_of(table))


@pytest.mark.parametrize("name", TABLES)
def test_the_diagram_in_the_docs_is_that_of_the_table(name: str) -> None:
    diagram = TABLES[name].diagram()
    assert f"```mermaid\n{diagram}\n```" in ARCHITECTURE.read_text(encoding="utf-8"), (
        f"docs/architecture.md lacks this diagram of the {name}:\n{diagram}"
    )


JOB_EVENTS = st.lists(st.sampled_from(JobChange))
FIRST = st.sampled_from(JOB_STATES.first)


@given(first=FIRST, events=JOB_EVENTS)
def test_a_job_releases_its_task_once(first: JobState, events: list[JobChange]) -> None:
    states = walk(JOB_STATES, first, events)
    ends = [after for before, after in pairwise(states) if after is not before]
    assert sum(JOB_STATES.is_final(state) for state in ends) <= 1
    told = [*events, JobChange.RESULT]
    assert JOB_STATES.is_final(walk(JOB_STATES, first, told)[-1])


@given(first=FIRST, events=JOB_EVENTS)
def test_a_jobs_end_is_read_once_at_most_and_only_when_its_processes_are_gone(
    first: JobState, events: list[JobChange]
) -> None:
    states = walk(JOB_STATES, first, events)
    readings = [
        number
        for number, (before, after) in enumerate(pairwise(states))
        if after is JobState.READING and before is not JobState.READING
    ]
    assert len(readings) <= 1
    for number in readings:
        happened = events[: number + 1]
        assert JobChange.DONE in happened or {JobChange.EXCEPTION, JobChange.CLEAN} <= set(happened)


@given(first=FIRST, events=JOB_EVENTS)
def test_a_job_never_returns_to_an_earlier_state(first: JobState, events: list[JobChange]) -> None:
    states = walk(JOB_STATES, first, events)
    seen = [after for before, after in pairwise(states) if after is not before]
    assert len(set(seen)) == len(seen)
    progress = [state in PROGRESS for state in states]
    assert progress == sorted(progress, reverse=True)


@given(events=st.lists(st.sampled_from(BlockChange)))
def test_a_block_is_gone_only_after_its_job_and_its_engine_have_ended(
    events: list[BlockChange],
) -> None:
    state, is_over, engine = BlockState.PENDING, False, "none"
    for event in events:
        before, state = state, BLOCK_STATES.after(state, event)
        if state is before:
            continue
        assert before is not BlockState.GONE
        is_over = is_over or event is BlockChange.JOB_ENDED
        match event:
            case BlockChange.START:
                engine = "starting"
            case BlockChange.OPENED:
                assert engine == "starting"
                engine = "open"
            case BlockChange.NOT_OPENED | BlockChange.STOPPED:
                engine = "none"
        assert (state is BlockState.GONE) == (is_over and engine == "none")
        assert state.is_open <= (engine == "open" and not is_over)


class AnInstance:
    """An instance that answers what it is told to."""

    instance = "local:///there"

    def __init__(self) -> None:
        self.ending = self.expired = False

    def is_ending(self) -> bool:
        return self.ending

    def is_expired(self) -> bool:
        return self.expired


def state_of(
    instance: AnInstance, at_end: Fate
) -> tuple[InstanceState, list[tuple[InstancePhase, InstanceCondition]]]:
    told: list[tuple[InstancePhase, InstanceCondition]] = []
    return InstanceState(instance, at_end, lambda before, now: told.append((before, now))), told


TOLD = {
    InstanceChange.ENDS: InstanceState.ends,
    InstanceChange.GIVE_UP: InstanceState.lose,
    InstanceChange.VANISHES: InstanceState.vanished,
}


@given(
    happenings=st.lists(st.sampled_from(sorted(TOLD, key=lambda each: each.name))),
    at_end=st.sampled_from(Fate),
)
def test_the_end_and_the_loss_of_an_instance_are_reported_once_each(
    happenings: list[InstanceChange], at_end: Fate
) -> None:
    state, told = state_of(AnInstance(), at_end)
    for number, happening in enumerate(happenings):
        TOLD[happening](state, str(number))
    assert [now.is_lost for _, now in told] in ([], [False], [True], [False, True])
    assert [before for before, _ in told] == [InstancePhase.RUNNING, InstancePhase.ENDING][
        : len(told)
    ]
    losses = [n for n, each in enumerate(happenings) if each is not InstanceChange.ENDS]
    if losses:  # the first one's reason stays
        assert state.now.reason == str(losses[0])
    if at_end is not Fate.LEFT:
        assert all(now.is_lost for _, now in told)


@pytest.mark.parametrize(
    ("at_end", "ending", "expired", "fate", "phase"),
    [
        (Fate.LEFT, False, False, Fate.OWN_END, InstancePhase.RUNNING),
        (Fate.LEFT, True, False, Fate.LEFT, InstancePhase.ENDING),
        (Fate.LEFT, False, True, Fate.LEFT, InstancePhase.EXPIRED),
        (Fate.LEFT, True, True, Fate.LEFT, InstancePhase.EXPIRED),
        (Fate.AWAITS_LOSS, False, True, Fate.OWN_END, InstancePhase.RUNNING),
        (Fate.AWAITS_LOSS, True, False, Fate.AWAITS_LOSS, InstancePhase.RUNNING),
        (Fate.OWN_END, True, True, Fate.OWN_END, InstancePhase.RUNNING),
    ],
)
def test_the_fate_of_a_task_whose_job_was_ended(
    at_end: Fate, ending: bool, expired: bool, fate: Fate, phase: InstancePhase
) -> None:
    instance = AnInstance()
    state, told = state_of(instance, at_end)
    instance.ending, instance.expired = ending, expired
    assert state.fate() is fate
    assert state.now.phase is phase
    instance.ending = instance.expired = False
    if fate is Fate.LEFT:  # it does not come back
        assert state.fate() is Fate.LEFT
        assert len(told) == 1
        assert "local:///there" in state.now.reason


@given(
    first=st.sampled_from(MANAGER_STATES.first),
    events=st.lists(st.sampled_from(ManagerChange)),
)
def test_a_manager_is_forgotten_once_and_serves_no_more_once_it_ends(
    first: ManagerState, events: list[ManagerChange]
) -> None:
    states = walk(MANAGER_STATES, first, events)
    gone = [after for before, after in pairwise(states) if after is not before].count(
        ManagerState.GONE
    )
    assert gone <= 1
    ending = next((n for n, state in enumerate(states) if state.is_ending), len(states))
    assert all(state.is_ending for state in states[ending:])
    assert MANAGER_STATES.after(states[-1], ManagerChange.DEAD) is ManagerState.GONE
