"""Pauses of several works: each has its own length."""

from flux_endpoint.service.retry_pauses import RetryPauses


def test_a_success_of_one_work_does_not_shorten_the_pauses_of_another() -> None:
    pauses = RetryPauses(1.0, 30.0, limit=10)
    now, lengths = 100.0, []
    for _ in range(7):
        pauses.succeeded("other")
        pause = pauses.failed("one", now)
        assert pause is not None
        lengths.append(pause)
        assert pauses.take_due(now) == ["one"]
        now = pauses.next_at
        assert pauses.take_due(now) == []
    longest = [1, 2, 4, 8, 16, 30, 30]
    assert all(end / 2 <= each <= end for each, end in zip(lengths, longest, strict=True))


def test_a_success_makes_the_next_pause_the_first_again() -> None:
    pauses = RetryPauses(1.0, 30.0, limit=10)
    for _ in range(4):
        pauses.failed("one", 0.0)
    pauses.succeeded("one")
    assert pauses.take_due(0.0) == []
    assert (pauses.failed("one", 0.0) or 99.0) <= 1.0


def test_a_work_with_nothing_to_do_is_forgotten() -> None:
    pauses = RetryPauses(1.0, 30.0, limit=10)
    pauses.failed("one", 0.0)
    assert pauses.take_due(5.0) == []
    assert pauses.next_at == float("inf")  # it is being tried: nothing else is due
    assert pauses.take_due(5.0) == []
    assert (pauses.failed("one", 5.0) or 99.0) <= 1.0


def test_too_many_failing_works_share_a_pause() -> None:
    pauses = RetryPauses(1.0, 30.0, limit=2)
    assert [pauses.failed(each, 0.0) is None for each in ("a", "b", "c", "a")] == [
        False,
        False,
        True,
        False,
    ]
    pauses.clear()
    assert pauses.failed("c", 0.0) is not None
