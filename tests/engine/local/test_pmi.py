"""PMI-1's wire protocol, as RFC 13 has it."""

from __future__ import annotations

import pytest

from flux_endpoint.engine.local.pmi import PmiExchange, PmiFailure


def one(exchange: PmiExchange, line: str, rank: int = 0) -> str:
    ((to, answer),) = exchange.answer(rank, line)
    assert to == rank
    return answer


def test_ranks_learn_who_they_are_and_what_they_share():
    exchange = PmiExchange(2)
    assert one(exchange, "cmd=init pmi_version=1 pmi_subversion=1") == (
        "cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=1"
    )
    assert one(exchange, "cmd=get_universe_size") == "cmd=universe_size rc=0 size=2"
    assert one(exchange, "cmd=get_appnum") == "cmd=appnum rc=0 appnum=0"
    name = one(exchange, "cmd=get_my_kvsname").rpartition("=")[2]
    assert one(PmiExchange(2), "cmd=get_my_kvsname").rpartition("=")[2] != name
    mapping = one(exchange, f"cmd=get kvsname={name} key=PMI_process_mapping")
    assert mapping == "cmd=get_result rc=0 value=(vector,(0,1,2))"
    assert one(exchange, f"cmd=put kvsname={name} key=a value=b c=d") == "cmd=put_result rc=0"
    assert one(exchange, f"cmd=get kvsname={name} key=a", 1) == "cmd=get_result rc=0 value=b c=d"
    assert one(exchange, "cmd=finalize") == "cmd=finalize_ack rc=0"


def test_a_barrier_lets_all_ranks_go_when_the_last_has_come():
    exchange = PmiExchange(3)
    for _ in range(2):
        assert not exchange.answer(2, "cmd=barrier_in")
        assert not exchange.answer(0, "cmd=barrier_in")
        gone = exchange.answer(1, "cmd=barrier_in")
        assert gone == [(rank, "cmd=barrier_out rc=0") for rank in range(3)]


def test_what_is_not_there_or_not_offered_is_refused():
    exchange = PmiExchange(2)
    assert one(exchange, "cmd=init pmi_version=2 pmi_subversion=0") == "cmd=response_to_init rc=-1"
    assert one(exchange, "cmd=get kvsname=job key=none") == "cmd=get_result rc=4"
    assert one(exchange, f"cmd=put kvsname=job key={'k' * 64} value=v") == "cmd=put_result rc=5"
    assert one(exchange, f"cmd=put kvsname=job key=k value={'v' * 1024}") == "cmd=put_result rc=7"
    assert one(exchange, "cmd=lookup_name service=x").startswith("cmd=lookup_result rc=-1")
    assert not exchange.answer(0, "mcmd=spawn")
    assert not exchange.answer(0, "execname=x")
    assert one(exchange, "endcmd") == "cmd=spawn_result rc=-1"


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("cmd=abort exitcode=3", "PMI_Abort: aborted"),
        ("cmd=abort exit_code=3 error_msg=out of fuel", "PMI_Abort: out of fuel"),
        ("cmd=put kvsname=job value=v", "PMI-1 wire protocol error"),
        ("cmd=dance", "PMI-1 wire protocol error"),
        ("nonsense", "PMI-1 wire protocol error"),
    ],
)
def test_an_abort_and_nonsense_end_the_job(line, note):
    with pytest.raises(PmiFailure, match=note):
        PmiExchange(2).answer(1, line)
