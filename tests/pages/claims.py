"""What is often said of schedules, with numbers by simulation, for docs/schedules.md."""

from intandem.costs import CostModel
from intandem.ir import ActionKind
from intandem.schedules import build_schedule
from intandem.simulator import peak_activations, simulate
from intandem.views import units

P = 4
SIZES = [(4, 2), (4, 4), (4, 8), (4, 32), (8, 4)]


def claims():
    """Each claim, what is so, and a table."""
    return "\n\n".join([_k_less_one_over_m(), _smaller_bubble(), _stale()])


def _timeline(name, p, m, **costs):
    schedule = build_schedule(name, num_ranks=p, num_microbatches=m)
    return simulate(schedule, CostModel.uniform(p, **costs))


def _table(headings, rows):
    lines = ["| " + " | ".join(headings) + " |", "|---:" * len(headings) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def _k_less_one_over_m():
    rows = []
    for p, m in SIZES:
        found = _timeline("1f1b", p, m)
        idle_s = p * found.makespan_s - found.busy_s
        said, share = units.share((p - 1) / m), units.share(idle_s / (p * found.makespan_s))
        rows.append((p, m, said, units.share(idle_s / found.busy_s), share))
    heads = ["K", "M", "(K - 1)/M", "idle / busy", "idle / all"]
    return f"""**"The bubble is (K - 1)/M of the time."** It is (K - 1)/M of the *work*: idle
divided by busy (K ranks, M micro-batches, GPipe or 1F1B). Of the time it is (K - 1)/(M + K - 1),
which cannot be more than everything:

{_table(heads, rows)}"""


def _smaller_bubble():
    rows = []
    for transfer_s in (0.0, 0.25, 0.5):
        cells = []
        for name in ("gpipe", "1f1b", "1f1b-eager"):
            found = _timeline(name, P, 8, transfer_s=transfer_s)
            cells += [units.duration(found.makespan_s), max(peak_activations(found))]
        rows.append((units.duration(transfer_s), *cells))
    heads = ["transfer", "GPipe", "holds", "1F1B", "holds", "1F1B eager", "holds"]
    return f"""**"1F1B has a smaller bubble than GPipe."** With equal stages they take exactly as
long; what 1F1B saves is memory. With transfers it is even the slower one, as neighbours wait for
each other in every micro-batch; a deeper warm-up buys that back. (Of 300 random cases with unequal
stages and no transfers, 1F1B was longer in none and shorter in most.) P = {P}, M = 8,
F = I = W = 1 s:

{_table(heads, rows)}"""


def _stale():
    schedule = build_schedule("1f1b", num_ranks=P, num_microbatches=8)
    rows = []
    for rank, row in enumerate(schedule.actions):
        between = max(_backwards_between(row, mb) for mb in range(8))
        rows.append((rank, peak_activations(schedule)[rank], between, 0))
    heads = ["rank", "activations held", "other backwards in between", "updates in between"]
    return f"""**"1F1B computes gradients on stale activations (or weights)."** Not with a flush:
between a micro-batch's forward and its backward there are other backwards, and no update, so each
gradient is the one that a single process computes; `intandem check` shows it to 1e-12, and a test
in exact arithmetic to the digit. Stale is PipeDream *without* a flush: there each of
those backwards updates the weights. P = {P}, M = 8:

{_table(heads, rows)}"""


def _backwards_between(row, microbatch):
    own = [slot for slot, action in enumerate(row) if action.microbatch == microbatch]
    return sum(action.kind is ActionKind.B for action in row[own[0] + 1 : own[1]])
