"""Clocks of processes on different machines, put on one."""

import threading
import time

import pytest

from intandem.pipeline.clocks import NUM_ROUNDS, Offset, host_identity, offset_to_first


class Board:
    """Facts in memory; a reader waits for them."""

    def __init__(self):
        self.facts, self.changed = {}, threading.Condition()

    def leave(self, place, value):
        with self.changed:
            assert place not in self.facts
            self.facts[place] = value
            self.changed.notify_all()

    def read(self, place):
        with self.changed:
            assert self.changed.wait_for(lambda: place in self.facts, timeout=20)
            return self.facts[place]


def offsets(hosts, ahead_s):
    """What every rank finds, each a thread whose clock is ahead by so much."""
    board, found = Board(), {}

    def work(rank):
        def clock():
            return time.perf_counter() + ahead_s[rank]

        found[rank] = offset_to_first(board, hosts, rank, "clocks/1", clock)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(hosts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return [found[rank] for rank in range(len(hosts))], board


def test_other_machines_are_put_on_the_clock_of_rank_0():
    """Within the error that is given along with the offset."""
    ahead_s = [0.0, 100.0, -7.0, 100.0]

    found, _ = offsets(["a", "b", "c", "b"], ahead_s)

    assert found[0] == Offset()
    for offset, ahead in zip(found, ahead_s, strict=True):
        assert abs(offset.add_s + ahead) <= offset.error_s + 1e-9


def test_one_process_of_a_machine_asks():
    """The others of its machine take what it found, so that they stay together."""
    found, board = offsets(["a", "b", "b", "a", "b"], [0.0, 5.0, 5.0, 0.0, 5.0])

    assert found[1] == found[2] == found[4] != Offset()
    assert found[0] == found[3] == Offset()
    assert {place.split("/")[2] for place in board.facts} == {"1"}
    assert len(board.facts) == 2 * NUM_ROUNDS + 1


def test_the_fastest_round_counts():
    """Rounds in which the answer was long under way say little."""
    now = [0.0]

    class Slow(Board):
        """Rank 0's clock is at 1000 more; answers take 8 s there and back, but for one."""

        def read(self, place):
            fast = place.endswith("/5")
            now[0] += 0.5 if fast else 1.0
            answer = 1000 + now[0]
            now[0] += 0.5 if fast else 7.0
            return repr(answer).encode()

    found = offset_to_first(Slow(), ["a", "b"], 1, "clocks/1", lambda: now[0])

    assert found == Offset(pytest.approx(1000.0), 0.5)


def test_a_host_is_itself():
    """Two processes of one machine say the same."""
    assert host_identity() == host_identity() != ""
