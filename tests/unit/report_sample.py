"""A report with every section filled, by hand."""

from intandem.ir import Action, Span, Timeline
from intandem.views.report import LossCurve, OptimizerSpan, Report, StageRow, Throughput


def timeline(*rows):
    """A timeline from ``"0F0 0 1"`` texts: action, start and end in seconds; a list per rank."""
    spans = []
    for rank, row in enumerate(rows):
        for text in row:
            action, start, end = text.split()
            spans.append(Span(rank, Action.parse(action), float(start), float(end)))
    return Timeline(tuple(spans), len(rows))


PLANNED = timeline(
    ["0F0 0 1", "0F1 1 2", "0B0 4 6", "0B1 7 9"], ["1F0 1 2", "1B0 2 4", "1F1 4 5", "1B1 5 7"]
)
MEASURED = timeline(
    ["0F0 10 11", "0F1 11 12", "0B0 14.5 16.5", "0B1 18 20"],
    ["1F0 11 12", "1B0 12 14.5", "1F1 14.5 15.5", "1B1 15.5 18"],
)


def full_report(**changes):
    """Every field set; ``changes`` replace some."""
    fields = {
        "title": "GPT",
        "schedule": "1f1b",
        "num_microbatches": 2,
        "planned": PLANNED,
        "measured": MEASURED,
        "optimizer": (OptimizerSpan(0, 20.0, 20.5),),
        "planned_activations": (((0.0, 1), (1.0, 2), (6.0, 1), (9.0, 0)), ((1.0, 1), (7.0, 0))),
        "measured_activations": (((10.0, 1), (11.0, 2), (16.5, 1)), ((11.0, 1), (18.0, 0))),
        "stages": (
            StageRow(
                0, (0,), "tokens … blocks.2", 1_350_000, 5_400_000, 1_310_000, 0.012, 0.024, 0.0135
            ),
            StageRow(1, (1,), "blocks.3 … head", 1_400_000, 5_600_000, sent_bytes=98304),
        ),
        "loss": LossCurve(((0, 5.5), (1, 3.0)), ((1, 2.9),), "nats per byte", 3.23, "byte entropy"),
        "throughput": Throughput(((0, 7000.0), (1, 8000.0)), "bytes"),
        "step_s": 0.512,
        "speed_ratio": 1.86,
        "gradient_equality": "gradients equal one process: max relative error 1.0e-15",
        "environment": (("torch", "2.13.0"), ("cores", "2")),
    }
    return Report(**(fields | changes))
