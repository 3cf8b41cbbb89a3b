"""The watch between processes, here between threads of one over a real store."""

import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch.distributed as dist

from intandem.errors import ActionError, PeerFailureError, RunError
from intandem.runtime.alive import Life, life_of, this_process
from intandem.runtime.board import Board
from intandem.runtime.distributed_watch import DistributedWatch
from intandem.runtime.sentinel import Sentinel
from intandem.runtime.suspicion import Limits
from intandem.runtime.trail import Trail, Trails
from intandem.runtime.verdict import (
    Beat,
    Presence,
    Verdict,
    decode_beat,
    decode_verdict,
    encode,
    verdict_text,
)
from intandem.runtime.watch import Position

HERE = Position(5, 7, 1, 2, "1F2")
QUICK = Limits(beat_s=0.02, left_s=0.2, suspect_s=0.2, verdict_s=0.5, grace_s=0.2)
HANG_S = 10


class Recorded:
    """Hooks that touch nothing and note what would have happened to the process."""

    def __init__(self):
        self.installed = False
        self.ended = []

    def install(self, watch):
        self.installed = True

    def undo(self):
        self.installed = False

    def end(self, text):
        self.ended.append(text)


@pytest.fixture(params=["hash", "tcp", "prefix"])
def store(request):
    """The kinds of store a run may meet in."""
    if request.param == "hash":
        return dist.HashStore()
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return server if request.param == "tcp" else dist.PrefixStore("default_pg/0", server)


@pytest.fixture
def join(store):
    """Make watches of one run; they are closed at the end."""
    made = []

    def watches(num_ranks, limits=QUICK):
        new = [
            DistributedWatch(store, rank, num_ranks, limits=limits, hooks=Recorded())
            for rank in range(num_ranks)
        ]
        made.extend(new)
        return new

    yield watches
    for watch in made:
        watch.close()


def error_of(watch):
    """Wait, as a transport does, until the watch raises."""
    end_s = time.monotonic() + HANG_S
    while time.monotonic() < end_s:
        try:
            watch.check()
        except RunError as error:
            return error
        time.sleep(0.005)
    pytest.fail("the watch did not raise")


def raised(error):
    """The same exception, with a traceback."""
    try:
        raise error
    except type(error) as caught:
        return caught


def test_everybody_learns_who_raised(join):
    """One line with rank, place and cause, then the culprit's traceback."""
    watches = join(3)
    watches[1].at(HERE)
    watches[1].fail(raised(ValueError("boom\nsecond line")))

    for rank in (0, 2):
        error = error_of(watches[rank])
        line, _, traceback = str(error).partition("\n")
        assert isinstance(error, PeerFailureError)
        assert line == (
            "rank 1 raised ValueError: boom at step 5 stage 1 micro-batch 2 action 1F2 "
            "(traceback of rank 1 below)"
        )
        assert "in raised" in traceback
        assert traceback.endswith("ValueError: boom\nsecond line")


def test_culprit_that_goes_on_is_reminded(join):
    """Its next wait raises too, but does not speak of another rank."""
    (watch,) = join(1)
    watch.fail(raised(ValueError("boom")))

    with pytest.raises(RunError, match="the run is over: rank 0 raised ValueError: boom") as again:
        watch.check()

    assert not isinstance(again.value, PeerFailureError)


def test_first_failure_wins(join):
    """Ranks that fail at the same time agree on one of them."""
    watches = join(4)
    start = threading.Barrier(4)

    def fail(watch, number):
        start.wait()
        watch.fail(raised(ValueError(str(number))))

    threads = [
        threading.Thread(target=fail, args=pair) for pair in zip(watches, range(4), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({watch.verdict for watch in watches}) == 1


def test_an_action_error_is_told_as_what_caused_it(join):
    """The user's own exception is the news."""
    (watch,) = join(1)
    error = ActionError("1F2 failed")
    error.__cause__ = raised(KeyError("x"))
    watch.fail(error)

    assert watch.verdict.cause == "raised KeyError: 'x'"


def test_what_another_rank_caused_is_not_told_over_it(join):
    """A victim waits for the culprit's name, and only blames itself when there is none."""
    victim, culprit = join(2)
    told = threading.Timer(0.1, culprit.fail, [raised(ValueError("boom"))])
    told.start()
    victim.fail(raised(RuntimeError("Connection closed by peer [127.0.0.1]:1")))
    told.join()

    assert victim.verdict.cause == "raised ValueError: boom"


@pytest.mark.timeout(20)
def test_an_error_that_is_its_own_cause_is_told(join):
    """``raise error from error`` makes one."""
    (watch,) = join(1)
    error = ValueError("boom")
    error.__cause__ = error
    watch.fail(error)

    assert watch.verdict.cause == "raised ValueError: boom"


def test_lost_connection_without_a_culprit_is_told(join):
    """Somebody must say it, or the others would wait on."""
    victim, other = join(2)
    victim.fail(raised(PeerFailureError("rank 0 lost its connection")))

    assert "rank 0 lost its connection" in str(error_of(other))


def test_waiting_for_a_rank_that_left(join):
    """A rank that has left in good order is missed by name."""
    waiting, leaving = join(2)
    leaving.at(HERE)
    leaving.close()
    waiting.at(Position(6, 0, 0, 0, "recv:1B0>0@1"))

    assert str(error_of(waiting)) == (
        "rank 1 left the run early while others waited for it "
        "at step 5 stage 1 micro-batch 2 action 1F2"
    )


def test_working_while_others_leave_is_fine(join):
    """Ranks end at different times; nobody who does not wait is bothered."""
    working, leaving = join(2)
    working.at(HERE)
    leaving.close()
    time.sleep(1.0)

    working.check()


def test_rank_that_does_not_notice_is_ended(join):
    """A rank stuck outside our waits is ended after the grace time, showing the error."""
    stuck, culprit = join(2)
    culprit.fail(raised(ValueError("boom")))
    hooks = stuck._hooks
    end_s = time.monotonic() + HANG_S
    while not hooks.ended and time.monotonic() < end_s:
        time.sleep(0.01)

    assert hooks.ended[0].startswith("rank 1 raised ValueError: boom")
    assert culprit._hooks.ended == []


def test_rank_that_hangs_is_ended_before_the_others(join):
    """It will not notice: those that do have their grace time."""
    limits = replace(QUICK, hang_s=0.1, hung_s=0.1, grace_s=2 * HANG_S)
    hanging, waiting = join(2, limits)
    hanging.at(HERE)
    end_s = time.monotonic() + HANG_S
    while not hanging._hooks.ended and time.monotonic() < end_s:
        waiting._sentinel.num_checks += 1
        time.sleep(0.01)

    assert hanging._hooks.ended
    assert hanging._hooks.ended[0].startswith("rank 0 has not moved for")
    assert waiting._hooks.ended == []


def test_closing_takes_the_hooks_back(join):
    """In good order only: a failed run still needs them."""
    good, bad = join(2)
    good.close()
    assert not good._hooks.installed
    bad.fail(raised(ValueError("boom")))
    bad.close()
    assert bad._hooks.installed


def test_lost_store_is_a_failure():
    """When the host of the store dies, every rank ends."""
    code = """
import sys, time, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
sys.stdout.write(f"{store.port}\\n")
sys.stdout.flush()
sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as host:
        store = dist.TCPStore("127.0.0.1", int(host.stdout.readline()), is_master=False)
        watch = DistributedWatch(store, 1, 2, limits=QUICK, hooks=Recorded())
        host.kill()
        error = error_of(watch)
        watch.close()

    assert "the store of the run is lost" in str(error)


def test_trail_is_read_from_another_process():
    """The page outlives its process, to the instruction."""
    code = """
import os, signal, sys
from intandem.runtime.alive import this_process
from intandem.runtime.trail import Trail
from intandem.runtime.verdict import Beat, Presence, encode
from intandem.runtime.watch import Position
trail = Trail()
sys.stdout.write(encode(Beat(0, Presence.RUNNING, this_process(trail.fd), None)) + "\\n")
sys.stdout.flush()
sys.stdin.readline()
trail.write(Position(5, 7, 1, None, "1F2"))
trail.be_patient(5)
os.kill(os.getpid(), signal.SIGKILL)
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    here = this_process()
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        beat = decode_beat(process.stdout.readline())
        trails = Trails()
        trails.follow({1: beat})
        assert life_of(beat.origin, seen_from=here) is Life.ALIVE
        process.stdin.write(b"go\n")
        process.stdin.flush()
        process.wait(HANG_S)

    assert life_of(beat.origin, seen_from=here) is Life.DEAD
    now = trails.refreshed({1: beat})[1]
    assert (now.position, now.patient_step) == (Position(5, 7, 1, None, "1F2"), 5)
    assert trails.refreshed({2: beat}) == {2: beat}
    verdict = trails.complete(Verdict(1, "died", None, last_seen=True))
    assert verdict == Verdict(1, "died", Position(5, 7, 1, None, "1F2"))


def test_beats_and_verdicts_survive_the_store(store):
    """What is written is what is read; a rank that has not joined has no beat."""
    board = Board(store)
    beat = Beat(3, Presence.LEFT, this_process(Trail().fd), HERE, waits=True, patient_step=4)
    board.beat(1, beat)
    verdict = Verdict(1, "raised ValueError: ü", HERE, last_seen=True, traceback="…")

    assert board.look((0, 1)).beats == {1: beat}
    assert board.look(()).verdict is None
    assert board.accuse(verdict) == verdict
    assert board.accuse(Verdict(0, "late")) == verdict
    assert Board(store).look(()).verdict == verdict
    assert decode_verdict(encode(verdict).encode()) == verdict


@pytest.mark.parametrize(
    ("verdict", "text"),
    [
        (
            Verdict(1, "was killed by SIGKILL", HERE),
            "rank 1 was killed by SIGKILL at step 5 stage 1 micro-batch 2 action 1F2",
        ),
        (
            Verdict(1, "was killed by SIGKILL", HERE, last_seen=True),
            "rank 1 was killed by SIGKILL, last seen at step 5 stage 1 micro-batch 2 action 1F2",
        ),
        (
            Verdict(1, "ended with exit code 3"),
            "rank 1 ended with exit code 3, before its first step",
        ),
        (Verdict(None, "the run was stopped by SIGINT"), "the run was stopped by SIGINT"),
    ],
)
def test_verdict_text(verdict, text):
    """One line where there is no traceback."""
    assert verdict_text(verdict) == text


def test_a_launcher_that_speaks_up_after_a_rank_has_come_is_believed():
    """Its store answers before it says that it watches; deaths are its to name all the same."""
    store = dist.HashStore()
    sentinel = Sentinel(store, 0, 2, QUICK, lambda text: None)
    before = sentinel.is_supervised
    Board(store).supervise()

    assert (before, sentinel.is_supervised) == (False, True)


def test_a_restarted_run_has_a_health_of_its_own(store):
    """The store may outlive the processes: what ended an earlier attempt is over."""
    Board(store, 0).accuse(Verdict(1, "was killed by SIGKILL"))

    assert Board(store, 1).look((0, 1)).verdict is None
    assert Board(store, 0).look((0, 1)).verdict is not None


def test_an_error_while_the_run_is_stopped_is_told(join, store):
    """What a rank raises by itself is news; a connection lost to a rank that stopped is none."""
    one, two = join(2)
    Board(store).stop("SIGTERM")
    one.fail(raised(RuntimeError("Connection closed by peer")))

    assert str(error_of(two)) == "the run was stopped by SIGTERM"


def test_a_rank_alone_that_is_told_to_end_is_named(join):
    """The others were not."""
    one, two = join(2)
    one.terminate()

    assert str(error_of(two)).startswith("rank 0 was told to end by SIGTERM")


def test_all_ranks_that_are_told_to_end_blame_nobody(join):
    """As torchrun does when it is stopped."""
    watches = join(3)
    threads = [threading.Thread(target=watch.terminate) for watch in watches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {watch.verdict for watch in watches} == {Verdict.stopped("SIGTERM")}
