"""A gradient scaler whose finding of infinite gradients is every rank's.

It is torch's own, with one thing added: when it divides gradients by the scale and looks for
infinite ones, all ranks say what they found, so that all skip the optimizer's step or none does,
and their scales stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from torch.amp.grad_scaler import GradScaler, OptState

from intandem.errors import RunError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

    from intandem.pipeline.exchange import Exchange


@dataclass(frozen=True, slots=True)
class Scaling:
    """Arguments of ``torch.amp.GradScaler``; see there."""

    init_scale: float
    growth_factor: float
    backoff_factor: float
    growth_interval: int
    enabled: bool


class PipelineGradScaler(GradScaler):
    """Scales the loss of a pipeline's steps; made by ``Pipeline.grad_scaler``.

    Args:
        device: of the pipeline.
        exchange: with the other processes.
        scaling: the same on every rank.

    Raises:
        RunError: if another rank asks for another scaling, or for none.
    """

    def __init__(self, device: torch.device, exchange: Exchange, scaling: Scaling) -> None:
        super().__init__(
            device.type,
            scaling.init_scale,
            scaling.growth_factor,
            scaling.backoff_factor,
            scaling.growth_interval,
            scaling.enabled,
        )
        self._exchange = exchange
        if scaling.enabled:
            self._lazy_init_scale_growth_tracker(device)
        self._agree("grad_scaler()", repr(scaling))

    def scale(self, outputs: Any) -> NoReturn:
        """Raise: ``step`` of the pipeline has scaled the loss that it differentiated.

        Raises:
            RunError: always.
        """
        del outputs
        msg = (
            "step() has already run backward, on the loss times scaler.get_scale(); drop "
            "scaler.scale(loss).backward(), and go on with scaler.step(optimizer)"
        )
        raise RunError(msg)

    def check_unscaled(self, what: str) -> None:
        """Refuse ``what`` while gradients are still multiplied by the scale.

        Raises:
            RunError: saying what to call first.
        """
        if not self.is_enabled():
            return
        stages = [state["stage"] for state in self._per_optimizer_states.values()]
        if OptState.UNSCALED not in stages:
            msg = (
                f"{what} while gradients are multiplied by the scale of the gradient scaler, "
                f"{self.get_scale():g}; call scaler.unscale_(optimizer) first"
            )
            raise RunError(msg)

    def _unscale_grads_(
        self, optimizer: Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        """Do what torch does, and share what was found. Collective."""
        found = super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        found = found or {found_inf.device: found_inf}  # nothing of this optimizer is trained here
        own = any(bool(number) for number in found.values())
        if self._found_anywhere(own=own):
            for number in found.values():
                number.fill_(1.0)
        return found

    def _found_anywhere(self, *, own: bool) -> bool:
        what = "GradScaler.unscale_() or step()"
        scale = repr(self.get_scale())
        facts = [fact.decode().split() for fact in self._exchange.gather(what, _fact(scale, own))]
        for rank, (theirs, _) in enumerate(facts):
            if theirs != scale:
                msg = (
                    f"rank {self._exchange.rank} has a gradient scale of {scale}, and rank {rank} "
                    f"of {theirs}; call update() alike, and load the same state, on every rank"
                )
                raise RunError(msg)
        return any(found == "inf" for _, found in facts)

    def _agree(self, what: str, own: str) -> None:
        for rank, theirs in enumerate(self._exchange.gather(what, own.encode())):
            if theirs.decode() != own:
                msg = f"{what}: rank {self._exchange.rank} asks for {own}, rank {rank} for "
                raise RunError(msg + f"{theirs.decode()}; ask for the same on every rank")


def _fact(scale: str, own: bool) -> bytes:
    return f"{scale} {'inf' if own else 'finite'}".encode()
