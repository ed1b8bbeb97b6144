"""How long a part of the stack is waited for before it is started again."""

from flux_endpoint.stack import programs
from flux_endpoint.stack.programs import RestartBackoff


def test_restart_delays_grow_to_a_minute_and_continue_forever():
    backoff = RestartBackoff()
    pauses = [backoff.failed() for _ in range(100)]
    assert pauses[0] <= programs.FIRST_BACKOFF
    assert 0.75 * programs.MAX_BACKOFF <= pauses[-1] <= programs.MAX_BACKOFF
    assert sum(pauses[:6]) < 40


def test_a_program_that_was_healthy_for_a_while_restarts_without_delay(monkeypatch):
    backoff = RestartBackoff()
    for _ in range(10):
        backoff.failed()
    backoff.started()
    monkeypatch.setattr(programs, "HEALTHY_AFTER", -1.0)
    assert backoff.failed() <= programs.FIRST_BACKOFF
