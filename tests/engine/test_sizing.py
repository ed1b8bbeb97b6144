"""How many workers there should be: the policy alone, on numbers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from flux_endpoint.engine import FluxEngineConfig
from flux_endpoint.engine.backend import Resources
from flux_endpoint.engine.demand import Amount
from flux_endpoint.engine.workers.sizing import (
    STALLED_AFTER,
    Limits,
    Pending,
    Piece,
    Step,
    WorkerCounts,
    to_start,
    to_withdraw,
)

#: Four nodes of sixteen cores.
SITE = Resources(nodes=4, cores=64, gpus=0)


def limits_of(per_manager: int = 16, **config: object) -> Limits:
    return Limits.of(FluxEngineConfig(**config), SITE, per_manager)


def started(
    limits: Limits, force: WorkerCounts, backlog: int, step: int | None = None
) -> list[int]:
    largest = Step(limits.per_manager)
    if step is not None:
        largest.stalled(2 * step)
    return [piece.workers for piece in to_start(limits, force, backlog, largest)]


# Bounds


@pytest.mark.parametrize(
    ("config", "least", "most"),
    [
        ({}, 16, 64),
        ({"max_workers": 5}, 5, 5),
        ({"max_workers": 24, "min_workers": 2}, 2, 24),
        ({"max_workers": 1000}, 16, 64),
        ({"min_workers": 0}, 0, 64),
        ({"max_nodes": 2}, 16, 32),
        ({"min_nodes": 2, "max_nodes": 9}, 32, 64),
        ({"min_nodes": 0}, 0, 64),
    ],
)
def test_explicit_limits_are_in_workers_and_defaults_in_whole_nodes(config, least, most):
    limits = limits_of(**config)
    assert (limits.least, limits.most) == (least, most)


def test_fewer_workers_than_cores_on_a_node_bound_all_of_them_but_may_be_raised():
    assert limits_of(4).most == 16
    assert limits_of(4, max_workers=40).most == 40


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"max_workers": 4, "max_nodes": 1}, "max_workers and max_nodes set the same limit"),
        ({"min_workers": 4, "min_nodes": 1}, "min_workers and min_nodes set the same limit"),
        ({"max_workers": 4, "min_workers": 5}, r"min_workers \(5\) is more than max_workers \(4\)"),
        ({"max_nodes": 1, "min_nodes": 2}, r"min_nodes \(2\) is more than max_nodes \(1\)"),
    ],
)
def test_bounds_that_contradict_are_refused_with_both_names(config, text):
    with pytest.raises(ValidationError, match=text):
        FluxEngineConfig(**config)


# Growth


@pytest.mark.parametrize(
    ("backlog", "pieces"), [(0, []), (3, [3]), (16, [16]), (20, [16, 4]), (1000, [16] * 4)]
)
def test_growth_fits_the_backlog(backlog, pieces):
    assert started(limits_of(min_workers=0), WorkerCounts(), backlog) == pieces


def test_the_permanent_workers_are_managers_of_their_own():
    pieces = to_start(limits_of(min_workers=2), WorkerCounts(), 5, Step(16))
    assert pieces == [Piece(2, permanent=True), Piece(3, permanent=False)]


def test_starting_and_idle_workers_are_counted():
    force = WorkerCounts(total=6, coming=3, free=1)
    assert started(limits_of(min_workers=0), force, 4) == []
    assert started(limits_of(min_workers=0), force, 6) == [2]


def test_a_slowly_growing_backlog_does_not_end_in_a_manager_for_each_worker():
    limits = limits_of(min_workers=0)
    total, managers = 0, 0
    while total < limits.most:
        for workers in started(limits, WorkerCounts(total=total), 1):
            total += workers
            managers += 1
    assert managers < limits.most / 2


def test_without_a_free_node_pieces_get_smaller_one_at_a_time():
    limits = limits_of(min_workers=0)
    assert started(limits, WorkerCounts(), 40, step=4) == [4]
    assert started(limits, WorkerCounts(total=4, coming=4, pending=1), 40, step=4) == []


@settings(deadline=None)
@given(
    least=st.integers(0, 40),
    extra=st.integers(0, 40),
    per_manager=st.integers(1, 20),
    total=st.integers(0, 90),
    data=st.data(),
)
def test_growth_keeps_every_bound(least, extra, per_manager, total, data):
    limits = Limits(least, least + extra, per_manager)
    force = WorkerCounts(
        permanent=data.draw(st.integers(0, min(least, total))),
        total=total,
        coming=data.draw(st.integers(0, total)),
        free=data.draw(st.integers(0, total)),
    )
    backlog = data.draw(st.integers(0, 200))
    pieces = to_start(limits, force, backlog, Step(per_manager))
    permanent = sum(piece.workers for piece in pieces if piece.permanent)
    new = sum(piece.workers for piece in pieces)
    assert all(1 <= piece.workers <= per_manager for piece in pieces)
    assert force.total + new <= max(limits.most, force.total)
    assert permanent + force.permanent <= max(least, force.permanent)
    room = limits.most - force.total
    assert permanent == max(0, min(least - force.permanent, room))
    if room > 0:  # what waits gets all that it needs, or all that there may be
        enough = new + force.coming + force.free >= backlog
        assert enough or force.total + new == limits.most


# Pieces that find no room


def pending(name: str, workers: int, **more: object) -> Pending:
    waited = {"waited": STALLED_AFTER, "stalled": STALLED_AFTER}
    values = {"permanent": False, "behind": False, **waited, **more}
    return Pending(name, workers, **values)


def test_a_piece_that_finds_no_room_is_tried_again_in_half():
    step = Step(16)
    assert to_withdraw([pending("a", 16), pending("b", 6)], 30, step, [16]) == ["a", "b"]
    assert step.size == 8
    assert step.is_reduced


def test_known_free_resources_are_filled_at_once():
    pieces = to_start(limits_of(min_workers=0), WorkerCounts(), 20, Step(16), room=[0, 3, 9, 1])
    assert [piece.workers for piece in pieces] == [9, 3, 1, 7]
    step = Step(16)
    assert to_withdraw([pending("a", 16)], 20, step, [0, 3, 9]) == ["a"]
    assert not step.is_reduced


def test_a_piece_that_fits_what_is_known_to_be_free_waits_for_a_slow_flux():
    assert to_withdraw([pending("a", 16), pending("b", 6)], 30, None, [6, 9]) == ["a"]
    assert to_withdraw([pending("a", 16), pending("b", 6)], 30, None, [16]) == []


@pytest.mark.parametrize(
    ("room", "pieces"), [([0, 0], []), ([0, 3], [3]), ([9, 9], [9, 7]), ([16], [16])]
)
def test_workers_that_must_not_queue_take_no_more_than_is_free(room, pieces):
    limits, step = limits_of(), Step(16)
    started = to_start(limits, WorkerCounts(), 0, step, room, queues=False)
    assert [piece.workers for piece in started] == pieces
    assert [p.workers for p in to_start(limits, WorkerCounts(), 0, step, [0, 0])] == [16]


def test_workers_that_share_cores_need_fewer():
    assert limits_of(32).fit(Amount(4)) == 8
    assert limits_of(8).fit(Amount(4)) == 4


def test_workers_with_several_cores_need_all_of_them():
    limits = limits_of(4, cores_per_worker=4)
    assert [limits.fit(Amount(cores)) for cores in (3, 4, 9)] == [0, 1, 2]
    assert limits_of(4, cores_per_worker=4, max_workers=1000).most == SITE.nodes * 4


def test_workers_with_gpus_need_both():
    limits = Limits(0, 8, 4, gpus_per_worker=2)
    free = (Amount(4, 5), Amount(1, 8), Amount(4), Amount(-1, -1))
    assert [limits.fit(each) for each in free] == [
        2,
        1,
        0,
        0,
    ]


@pytest.mark.parametrize(
    "piece",
    [
        pending("new", 16, waited=STALLED_AFTER / 2, stalled=STALLED_AFTER / 2),
        pending("where nothing is free", 16, stalled=STALLED_AFTER / 2),
        pending("behind a job that came before it", 16, behind=True),
        pending("as small as can be", 1),
        pending("permanent", 1, permanent=True),
    ],
    ids=lambda piece: piece.name,
)
def test_a_needed_piece_keeps_its_place_in_the_queue(piece):
    step = Step(16)
    assert to_withdraw([piece], 30, step, [16]) == []
    assert not step.is_reduced


def test_an_unneeded_piece_is_withdrawn_without_reducing_the_step():
    step = Step(16)
    waiting = [pending("a", 16, behind=True, stalled=0.0), pending("b", 1)]
    assert to_withdraw(waiting, 0, step, [16]) == ["a", "b"]
    assert not step.is_reduced


def test_a_piece_ahead_of_a_waiting_job_is_withdrawn_unless_it_is_needed():
    waiting = [pending("a", 4, permanent=True, ahead=True, waited=0.0, stalled=0.0)]
    assert to_withdraw(waiting, 0, Step(16), []) == ["a"]
    assert to_withdraw(waiting, 1, Step(16), []) == []


@settings(deadline=None)
@given(free=st.integers(0, 100), most=st.integers(1, 64))
def test_pieces_eventually_fill_any_free_resources(free, most):
    """One after the other, each at once if there is room for it, and withdrawn if not.

    Somebody else has the rest of what seems to be free.
    """
    step, turns, placed = Step(most), 0, []
    while free and turns < 200:
        turns += 1
        [piece] = to_start(Limits(0, 200, most), WorkerCounts(), 200, step)[:1]
        if piece.workers <= free:
            free -= piece.workers
            placed.append(piece.workers)
            step.placed(piece.workers)
        else:
            to_withdraw([pending("a", piece.workers)], 200, step, [most])
    assert free == 0
    assert len(placed) <= 2 * most.bit_length() + 100 // most + 2


def test_pieces_grow_again_when_there_is_room():
    step = Step(16)
    step.stalled(2)
    for _ in range(8):
        step.placed(step.size)
    assert not step.is_reduced
