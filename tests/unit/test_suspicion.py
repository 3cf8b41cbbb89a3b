"""When one rank takes another for lost: on a clock of numbers."""

from dataclasses import replace
from itertools import count

import pytest

from intandem.runtime.alive import Life
from intandem.runtime.suspicion import Judge, Limits, Observed
from intandem.runtime.verdict import Beat, Origin, Presence
from intandem.runtime.watch import BETWEEN_STEPS, Position

BEAT_S = 0.2
HERE = Position(5, 7, 1, 2, "1F2")


def beat(number, presence=Presence.RUNNING, step=5):
    """A beat of rank 1."""
    position = Position(step, 7, 1, 2, "1F2")
    return Beat(number, presence, Origin("host", 7, 7), position)


def seconds_until_verdict(observe, *, limit_s=30.0, passed_s=BEAT_S):
    """Feed what ``observe(beat number)`` says until there is a verdict."""
    judge = Judge(Limits())
    for number in count():
        if number * passed_s > limit_s:
            return None, None
        if (verdict := judge.verdict(observe(number))) is not None:
            return number * passed_s, verdict
    return None


def view(beats, **more):
    """One beat's view."""
    return Observed(BEAT_S, beats, more.pop("lives", {}), **more)


def test_a_rank_that_beats_is_never_lost():
    """Not even one that is slow to move, or when errors were seen here."""
    assert seconds_until_verdict(lambda n: view({1: beat(n)}, suspicious=True)) == (None, None)


def test_dead_process_is_named_at_once():
    """No waiting when its process can be seen to be gone."""
    at_s, verdict = seconds_until_verdict(lambda _: view({1: beat(0)}, lives={1: Life.DEAD}))

    assert at_s == 0
    assert (verdict.rank, verdict.position, verdict.last_seen) == (1, HERE, True)
    assert verdict.cause == "died (its process is gone)"


def test_dead_process_that_said_goodbye_is_not_lost():
    """Ranks end at different times."""
    gone = beat(0, Presence.LEFT)

    assert seconds_until_verdict(lambda _: view({1: gone}, lives={1: Life.DEAD}))[1] is None


@pytest.mark.parametrize(
    ("life", "suspicious", "after_s", "cause"),
    [
        (Life.UNKNOWN, True, 1.5, "did not answer for 1.6 s (dead, stopped or cut off)"),
        (Life.UNKNOWN, False, 4, "did not answer for 4 s (stuck or cut off)"),
        (Life.ALIVE, True, 4, "did not answer for 4 s (stuck or cut off)"),
        (Life.STOPPED, False, 3, "was stopped (SIGSTOP) for 3 s"),
    ],
)
def test_silence_counts_after_a_while(life, suspicious, after_s, cause):
    """The fewer signs there are, the longer it takes."""
    at_s, verdict = seconds_until_verdict(
        lambda _: view({1: beat(0)}, lives={1: life}, suspicious=suspicious)
    )

    assert after_s <= at_s <= after_s + 2 * BEAT_S
    assert verdict.cause == cause


@pytest.mark.parametrize(("doing", "patient_step"), [(BETWEEN_STEPS, 0), ("save()", 0), ("1F2", 5)])
def test_silence_takes_longer_to_count_where_code_may_hold_the_lock(doing, patient_step):
    """The user's own may, to read a large file, and what runs for the first time, to compile."""
    position = Position(5, 7, None, None, doing)
    away = replace(beat(0), position=position, patient_step=patient_step)

    at_s, verdict = seconds_until_verdict(lambda _: view({1: away}, lives={1: Life.ALIVE}))

    assert 10 <= at_s <= 10 + 2 * BEAT_S
    assert verdict.cause == "did not answer for 10 s (stuck or cut off)"


def test_process_held_by_a_debugger_is_left_alone():
    """Somebody looks at it."""
    assert seconds_until_verdict(lambda _: view({1: beat(0)}, lives={1: Life.HELD}))[1] is None


def test_own_absence_is_not_held_against_others():
    """A process that was itself away for a minute has seen nothing: it takes another look."""
    judge = Judge(Limits())
    judge.verdict(view({1: beat(0)}))

    assert judge.verdict(Observed(60.0, {1: beat(0)}, {})) is None


def test_leaving_is_no_failure_until_somebody_waits():
    """A rank that has left is missed once this rank has waited for it for two seconds."""
    left = {1: beat(0, Presence.LEFT), 2: beat(0, Presence.LEFT)}

    assert seconds_until_verdict(lambda _: view(left)) == (None, None)
    at_s, verdict = seconds_until_verdict(lambda _: view(left, waits_for=frozenset({2})))

    assert 2 <= at_s <= 2 + 2 * BEAT_S
    assert (verdict.rank, verdict.cause) == (2, "left the run early while others waited for it")


def test_the_earliest_leaver_is_blamed_for_a_lost_connection():
    """Of ranks that have left, the one that got least far cut the connection."""
    left = {0: beat(0, Presence.LEFT, step=9), 2: beat(0, Presence.LEFT, step=4)}

    assert seconds_until_verdict(lambda _: view(left, suspicious=True))[1].rank == 2


def test_silence_is_blamed_before_leaving():
    """A rank that died without a word is the cause, not one that has left in good order."""
    beats = {0: beat(0, Presence.LEFT), 1: beat(0)}

    assert seconds_until_verdict(lambda _: view(beats, suspicious=True))[1].rank == 1
