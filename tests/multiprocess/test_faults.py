"""Whatever happens to one rank, every other one names it, and all end."""

import re
import signal

import pytest
from fault_runs import TRAIN_SCRIPT, errors_of, run, run_by_hand, stopped

BOUND_S = 20
"""Guards against a hang; the seconds measured are printed."""

PLACE = "at step 5 stage 1 micro-batch 2 action 1F2"
RAISED = f"rank 1 raised ValueError: boom {PLACE} (traceback of rank 1 below)"
GONE = f"rank 1 died (its process is gone) {PLACE}"
TERMINATED = f"rank 1 was told to end by SIGTERM {PLACE}"
LEFT = f"rank 1 left the run early while others waited for it {PLACE}"
STOPPED = f"rank 1 was stopped (SIGSTOP) for 3 s {PLACE}"
HUNG = f"rank 1 has not moved for SECONDS s (limit 1 s) {PLACE} (traceback of rank 1 below)"

EXPECTED = {
    ("intandem", "raise"): (RAISED, 1),
    ("intandem", "outside"): (RAISED, 1),
    ("intandem", "sys.exit(0)"): (LEFT, 1),
    ("intandem", "sys.exit(3)"): (f"rank 1 ended with exit code 3 {PLACE}", 3),
    ("intandem", "os._exit(0)"): (f"rank 1 left the run early, with exit code 0 {PLACE}", 1),
    ("intandem", "os._exit(3)"): (f"rank 1 ended with exit code 3 {PLACE}", 3),
    ("intandem", "SIGKILL"): (f"rank 1 was killed by SIGKILL {PLACE}", 137),
    ("intandem", "SIGSEGV"): (f"rank 1 was killed by SIGSEGV {PLACE}", 139),
    ("intandem", "SIGTERM"): (TERMINATED, 143),
    ("intandem", "SIGSTOP"): (STOPPED, 1),
    ("intandem", "hang"): (HUNG, 1),
    ("intandem", "gil"): (f"rank 1 did not answer for 4 s (stuck or cut off) {PLACE}", 1),
    ("torchrun", "raise"): (RAISED, 1),
    ("torchrun", "outside"): (RAISED, 1),
    ("torchrun", "sys.exit(0)"): (LEFT, 1),
    ("torchrun", "sys.exit(3)"): (LEFT, 1),
    ("torchrun", "os._exit(0)"): (GONE, 1),
    ("torchrun", "os._exit(3)"): (GONE, 1),
    ("torchrun", "SIGKILL"): (GONE, 1),
    ("torchrun", "SIGSEGV"): (GONE, 1),
    ("torchrun", "SIGTERM"): (TERMINATED, 1),
    ("torchrun", "SIGSTOP"): (STOPPED, 1),
    ("torchrun", "hang"): (HUNG, 1),
    ("torchrun", "gil"): (f"rank 1 did not answer for 4 s (stuck or cut off) {PLACE}", 1),
}
"""(launcher, fault): what every survivor says, and the exit code of the launcher."""

EVERY_COMMIT = {
    ("intandem", "raise"),
    ("intandem", "SIGKILL"),
    ("torchrun", "SIGKILL"),
    ("intandem", "hang"),
}


def matrix():
    """Every cell; those not run on every commit are slow."""
    slow = (pytest.mark.slow,)
    return [
        pytest.param(*cell, marks=() if cell in EVERY_COMMIT else slow, id="-".join(cell))
        for cell in EXPECTED
    ]


@pytest.mark.parametrize(("launcher", "fault"), matrix())
def test_every_survivor_names_the_culprit(launcher, fault):
    """One error on every survivor, with rank, place and cause; exit code not 0; nothing left."""
    text, code = EXPECTED[launcher, fault]

    ended = run(launcher, fault)

    for survivor in (0, 2):
        error = re.sub(r"moved for [\d.]+ s", "moved for SECONDS s", ended.errors.get(survivor, ""))
        assert error == f"intandem.errors.PeerFailureError: {text}", ended.text
    assert ended.code == code
    assert ended.left == []
    assert ended.gone_s < BOUND_S


def test_the_stack_of_a_rank_that_hangs_is_shown():
    """The line that it stands in, on every rank."""
    ended = run("intandem", "hang", ranks=2)

    assert ended.text.count("threading.Event().wait()") >= 2, ended.text


@pytest.mark.parametrize(
    ("launcher", "signum", "code"),
    [
        ("intandem", signal.SIGTERM, 143),
        ("intandem", signal.SIGINT, 130),
        pytest.param("torchrun", signal.SIGTERM, 1, marks=pytest.mark.slow),
    ],
)
def test_nobody_is_blamed_for_a_run_that_is_told_to_stop(launcher, signum, code):
    """Every rank says that the run was stopped; none says that another one has failed."""
    ended = stopped(launcher, signum)

    assert ended.code == code, ended.text
    assert not re.search(r"rank \d (was|raised|left|died|ended|has)", ended.text), ended.text
    assert f"the run was stopped by {signal.Signals(signum).name}" in ended.text
    assert ended.left == []


def test_raising_again_after_the_error_was_swallowed():
    """A script that goes on all the same gets the same error at every wait; it does not hang."""
    ended = run("intandem", "swallow")

    assert ended.text.count("swallowed PeerFailureError") > 2
    assert "swallowed RunError" in ended.text
    assert ended.code == 1
    assert ended.left == []
    assert ended.gone_s < BOUND_S


def test_a_healthy_run_ends_with_zero():
    """Without a fault nobody complains, though the ranks end at different times."""
    ended = run("intandem", "none")

    assert ended.errors == {}
    assert ended.code == 0, ended.text
    assert ended.left == []


@pytest.mark.slow
def test_without_a_launcher_the_death_of_the_store_is_the_failure():
    """As under Slurm: rank 0 hosts the store, and takes it along when it is killed."""
    codes, said = run_by_hand("SIGKILL", culprit=0)

    assert codes == [-9, 1]
    named = errors_of(said[1])[1]
    assert "rank 0 died (its process is gone) at step 5" in named or (
        "the store of the run is lost" in named
    )


@pytest.mark.slow
def test_without_a_launcher_a_healthy_run_ends_with_zero():
    """Rank 0 ends first and its store with it: the others do not take that for a failure."""
    codes, said = run_by_hand("none", culprit=1)

    assert codes == [0, 0], said


def test_one_script_under_every_launcher(monkeypatch):
    """python, intandem run and torchrun run the same script, to the same loss, bit by bit.

    Whether processes share memory changes nothing.
    """
    ended = [run(how, "none", 2, TRAIN_SCRIPT) for how in ("python", "intandem", "torchrun")]
    monkeypatch.setenv("OVER_GLOO", "1")
    ended.append(run("intandem", "none", 2, TRAIN_SCRIPT))

    assert [each.code for each in ended] == [0, 0, 0, 0], ended
    losses = {loss for each in ended for loss in re.findall(r"loss ([-0-9.e]+)", each.text)}
    assert len(losses) == 1
    assert [each.left for each in ended] == [[], [], [], []]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["intandem", "torchrun"])
@pytest.mark.parametrize(
    ("fault", "cause"), [("raise", "raised ValueError: boom"), ("SIGKILL", "(was killed|died).*")]
)
@pytest.mark.parametrize("way", ["shared", "gloo"])
def test_a_pipeline_names_the_culprit(launcher, fault, cause, way, monkeypatch):
    """The whole library, not a loop in miniature."""
    if way == "gloo":
        monkeypatch.setenv("OVER_GLOO", "1")
    ended = run(launcher, fault, 2, TRAIN_SCRIPT)

    place = r"at step \d+ stage 1 micro-batch \d+ action 1F\d+"
    assert re.search(rf"PeerFailureError: rank 1 {cause} {place}", ended.errors[0]), ended.text
    assert ended.code != 0
    assert ended.left == []
    assert ended.gone_s < BOUND_S
