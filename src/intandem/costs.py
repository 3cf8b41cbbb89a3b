"""What actions and transfers cost: the numbers that simulation, bounds and planning work with."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from intandem.argument_types import require_int, require_number, require_type
from intandem.ir import Action, ActionKind, Message
from intandem.ir.strict_json import as_number, as_whole, read_object

if TYPE_CHECKING:
    from collections.abc import Sequence

_PER_STAGE = ("forward_s", "backward_input_s", "backward_weight_s", "backward_s")
_OPTIONAL_PER_STAGE = (
    "activation_bytes",
    "pending_bytes",
    "overlapped_s",
    "optimizer_s",
    "reduction_s",
    "gradient_bytes",
)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds and bytes of every stage and of the links between ranks.

    Attributes:
        forward_s: seconds of F, per stage.
        backward_input_s: seconds of I, per stage.
        backward_weight_s: seconds of W, per stage.
        backward_s: seconds of B, per stage; I + W where it is left empty.
        latency_s: seconds that any message between two ranks takes at least. Messages on one
            link may be under way at once for this part.
        bandwidth_bytes_per_s: of each directed link between two ranks; infinite by default.
            A link carries one message at a time for this part.
        boundary_bytes: ``boundary_bytes[s]`` is what crosses between stages s and s + 1, each
            way, per micro-batch; empty for 0.
        activation_bytes: what a stage keeps per micro-batch from the start of F to the end of B
            or I; empty for unknown.
        pending_bytes: what a stage keeps per micro-batch from the end of I to the end of W; by
            default ``activation_bytes``: I frees nothing.
        overlapped_s: seconds of an F and a B or I that overlap, together, per stage of the F; by
            default the sum of the two. Not less than the F alone; whether less than the B or I is
            not looked at, as any of the rank's stages may have it.
        optimizer_s: seconds of the optimizer's step, per stage; empty for 0.
        reduction_s: seconds in which the gradients that several ranks hold of a stage are added
            up at the end of a step, whatever their bytes; empty for 0.
        gradient_bytes: what that moves, per stage; empty for 0.

    Raises:
        ValueError: if a list has the wrong length, a number is negative or not finite, or a pair
            is shorter than its F.
        TypeError: if what is per stage is no list, or holds something other than numbers.
    """

    forward_s: tuple[float, ...]
    backward_input_s: tuple[float, ...]
    backward_weight_s: tuple[float, ...]
    backward_s: tuple[float, ...] = ()
    latency_s: float = 0.0
    bandwidth_bytes_per_s: float = math.inf
    boundary_bytes: tuple[int, ...] = ()
    activation_bytes: tuple[int, ...] = ()
    pending_bytes: tuple[int, ...] = ()
    overlapped_s: tuple[float, ...] = ()
    optimizer_s: tuple[float, ...] = ()
    reduction_s: tuple[float, ...] = ()
    gradient_bytes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for key in _PER_STAGE:
            require_type(key, getattr(self, key), (tuple, list), "a number per stage")
        num_stages = len(self.forward_s)
        if num_stages < 1:
            msg = "forward_s has no stages; expected at least one number"
            raise ValueError(msg)
        if not self.backward_s:
            pairs = zip(self.backward_input_s, self.backward_weight_s, strict=False)
            object.__setattr__(self, "backward_s", tuple(i + w for i, w in pairs))
        for key in _PER_STAGE:
            _require(key, getattr(self, key), num_stages)
        _require("boundary_bytes", self.boundary_bytes or (0,) * (num_stages - 1), num_stages - 1)
        if not self.pending_bytes:
            object.__setattr__(self, "pending_bytes", self.activation_bytes)
        for key in _OPTIONAL_PER_STAGE:
            _require(key, getattr(self, key) or (0,) * num_stages, num_stages)
        _require_pairs_to_last(self.forward_s, self.overlapped_s)
        _require("latency_s", (self.latency_s,), 1)
        if not self.bandwidth_bytes_per_s > 0:
            msg = f"bandwidth_bytes_per_s is {self.bandwidth_bytes_per_s}; expected more than 0"
            raise ValueError(msg)

    @classmethod
    def uniform(
        cls,
        num_stages: int,
        forward_s: float = 1.0,
        backward_input_s: float = 1.0,
        backward_weight_s: float = 1.0,
        transfer_s: float = 0.0,
    ) -> CostModel:
        """Every stage costs the same; every message between two ranks takes ``transfer_s``."""
        require_int("num_stages", num_stages)
        return cls(
            (forward_s,) * num_stages,
            (backward_input_s,) * num_stages,
            (backward_weight_s,) * num_stages,
            latency_s=transfer_s,
        )

    @property
    def num_stages(self) -> int:
        """Length of the pipeline."""
        return len(self.forward_s)

    def seconds(self, action: Action) -> float:
        """Seconds that ``action`` holds its rank."""
        return self.kind_s(action.kind)[action.stage]

    def kind_s(self, kind: ActionKind) -> tuple[float, ...]:
        """Seconds of ``kind``, per stage."""
        match kind:
            case ActionKind.F:
                return self.forward_s
            case ActionKind.B:
                return self.backward_s
            case ActionKind.I:
                return self.backward_input_s
            case ActionKind.W:
                return self.backward_weight_s

    def pair_s(self, forward: Action, backward: Action) -> float:
        """Seconds that ``forward`` and ``backward`` hold their rank when they overlap."""
        if self.overlapped_s:
            return self.overlapped_s[forward.stage]
        return self.seconds(forward) + self.seconds(backward)

    def message_bytes(self, source_stage: int, target_stage: int) -> int:
        """Bytes of a message; one that skips stages counts what crosses before the later one."""
        later = max(source_stage, target_stage)
        return self.boundary_bytes[later - 1] if self.boundary_bytes else 0

    def link_s(self, message: Message) -> float:
        """Seconds for which ``message`` keeps its link to itself: its bytes by the bandwidth."""
        num_bytes = self.message_bytes(message.source.stage, message.target_stage)
        return num_bytes / self.bandwidth_bytes_per_s

    def transfer_s(self, message: Message) -> float:
        """Seconds from the start of sending ``message`` to another rank until it is there."""
        return self.latency_s + self.link_s(message)


def parse_costs(text: str, *, num_stages: int, transfer_s: float = 0.0) -> CostModel:
    """Read ``F=1,I=1,W=1`` or ``F=1,B=2`` (then I and W are half of B each), in seconds.

    ``FB=2.5`` in addition is what an F takes together with the B or I that it overlaps with: not
    less than F.

    Raises:
        ValueError: names the key that is missing, unknown, repeated or not a number.
    """
    found: dict[str, float] = {}
    for item in text.split(","):
        key, equals, value = item.strip().partition("=")
        if not equals or key not in {*ActionKind, "FB"}:
            msg = f"costs: found {item.strip()!r}; expected F=, I=, W=, B= or FB= and seconds"
            raise ValueError(msg)
        if key in found:
            msg = f"costs: {key} is given twice in {text!r}"
            raise ValueError(msg)
        found[key] = _seconds(key, value)
    half = found.get("B", math.nan) / 2
    cost = {"I": half, "W": half, **found}
    for key in ("F", "I", "W"):
        if math.isnan(cost.get(key, math.nan)):
            msg = f"costs: {key} is missing in {text!r}; expected F with B, or F, I and W"
            raise ValueError(msg)
    f, i, w, b, together = (
        (cost[k],) * num_stages if k in cost else () for k in ("F", "I", "W", "B", "FB")
    )
    return CostModel(f, i, w, b, latency_s=transfer_s, overlapped_s=together)


def costs_from_json(text: str, *, num_stages: int) -> CostModel:
    """Read a JSON object with the attributes of ``CostModel``.

    Values that are per stage are lists, or one number that stands for every stage.

    Raises:
        ValueError: names the key that is missing, unknown or has the wrong shape.
    """
    content = read_object(text, what="costs", known=[field.name for field in fields(CostModel)])
    for key in _PER_STAGE[:3]:
        if key not in content:
            msg = f"costs: {key!r} is missing; expected one number per stage"
            raise ValueError(msg)
    return CostModel(**{key: _json_value(key, content[key], num_stages) for key in content})


def _json_value(key: str, value: object, num_stages: int) -> Any:
    what = f"costs: {key!r}"
    if key in {"latency_s", "bandwidth_bytes_per_s"}:
        return as_number(value, what=what)
    length = num_stages - 1 if key == "boundary_bytes" else num_stages
    values = value if isinstance(value, list) else [value] * length
    if len(values) != length:
        msg = f"{what} has {len(values)} values; expected {length}"
        raise ValueError(msg)
    as_one = as_whole if key.endswith("bytes") else as_number
    return tuple(as_one(one, what=what) for one in values)


def _seconds(key: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        msg = f"costs: {key} is {value!r}; expected seconds, 0 or more"
        raise ValueError(msg)
    return seconds


def _require(key: str, values: Sequence[float], length: int) -> None:
    if len(values) != length:
        msg = f"{key} has {len(values)} values; expected {length}"
        raise ValueError(msg)
    for value in values:
        require_number(key, value)
        if not (math.isfinite(value) and value >= 0):
            msg = f"{key} has {value}; expected a finite number, 0 or more"
            raise ValueError(msg)


def _require_pairs_to_last(forward_s: Sequence[float], overlapped_s: Sequence[float]) -> None:
    for stage, (alone_s, both_s) in enumerate(zip(forward_s, overlapped_s, strict=False)):
        if both_s < alone_s:
            got = f"overlapped_s (FB) of stage {stage} is {both_s:g}"
            msg = f"{got}; expected at least its forward_s (F), {alone_s:g}"
            raise ValueError(msg)
