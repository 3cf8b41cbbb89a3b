"""Whether a payload is what its edge promises: checked on the sending side, before it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from intandem.runtime.transport.protocol import Contract, Label, Payload, TensorSpec


def check_payload(
    payload: Payload, contract: Contract, label: Label, *, rank: int, peer: int
) -> None:
    """Return if every tensor of ``payload`` has the shape and dtype that ``contract`` says.

    Raises:
        ContractError: naming the message, both ranks, and each tensor that differs.
    """
    if len(payload) != len(contract):
        found = f"{len(payload)} tensor(s), expected {len(contract)}"
        raise ContractError(_message(label, rank, peer, found))
    for tensor, spec in zip(payload, contract, strict=True):
        if tensor is not None and (tensor.shape != spec.shape or tensor.dtype is not spec.dtype):
            found = "; ".join(_differences(payload, contract))
            raise ContractError(_message(label, rank, peer, found))


def describe(spec: Tensor | TensorSpec) -> str:
    """Shape and dtype, written ``(2, 3) float32``."""
    return f"{tuple(spec.shape)} {str(spec.dtype).removeprefix('torch.')}"


def _message(label: Label, rank: int, peer: int, found: str) -> str:
    return f"message {label} from rank {rank} to rank {peer}: {found}"


def _differences(payload: Payload, contract: Contract) -> Iterator[str]:
    for index, (tensor, spec) in enumerate(zip(payload, contract, strict=True)):
        if tensor is not None and describe(tensor) != describe(spec):
            yield f"tensor {index} is {describe(tensor)}, expected {describe(spec)}"
