"""Run calls without data.

[Note: skeleton] Where parameters are on ``meta``, or have been freed because they are other
stages', a call that meets one runs on fake tensors, which have shapes and a device but no data,
while glue on the batch alone runs for real, so that guards have values. A buffer that is written to
without data is fake from then on. Memory made with data that is then written to without it shows
that the call that made it was misjudged: the recording begins anew, and that call runs without data
from the start. A block that has to see numbers inside (a router's choice) is run on zeros, for the
shapes of what it returns.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from intandem.errors import CaptureError
from intandem.recorder.functions import function_name, updates_statistics
from intandem.recorder.trees import leaves, map_tree
from intandem.recorder.values import version_of
from intandem.recorder.zeros import Zeros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Table = dict[str, Any] | list[Any]
"""Where a module keeps tensors: those it has registered, and lists of them (as ``nn.LSTM``)."""

_REMEDY = "give the pipeline an example with the shapes you train on"


class MadeWithDataError(CaptureError):
    """A call wrote without data to memory that an earlier call made with data.

    Args:
        message: for a person, where nothing can be done about it.
        tensor: of that memory.
    """

    def __init__(self, message: str, tensor: Tensor) -> None:
        super().__init__(message)
        self.tensor = tensor


class RunWithoutDataError(CaptureError):
    """A recording has to begin anew.

    Args:
        call: index of the call to run without data then.
    """

    def __init__(self, call: int) -> None:
        super().__init__(f"call {call} is to run without data")
        self.call = call


class Activity(NamedTuple):
    """A call to make.

    Attributes:
        name: of the call, for errors.
        proceed: makes it.
        module: whose parameters and buffers it may use without being given them; or None.
        is_forced: whether what it makes is fake even if nothing it is given is.
        is_block: whether it is a block.
    """

    name: str
    proceed: Callable[..., Any]
    module: nn.Module | None
    is_forced: bool
    is_block: bool


def _ctc_loss(
    log_probs: Tensor, *args: Any, reduction: str | int = "mean", **kwargs: Any
) -> Tensor:
    """Return what has the shape of a CTC loss, which torch does not compute without data."""
    del args, kwargs
    each = log_probs.sum((0, 2) if log_probs.dim() == 3 else None)
    return each if reduction in {"none", 0} else each.mean()


_STAND_INS: dict[str, Callable[..., Any]] = {"ctc_loss": _ctc_loss}
"""What to call without data in place of functions that cannot be."""


class _Twin(NamedTuple):
    """A tensor, what stands for it, and the versions of both when it was made."""

    real: Tensor
    fake: Tensor
    real_version: int
    fake_version: int


class Skeleton:
    """Makes fake tensors of one recording.

    Args:
        device: that they claim to be on.
        registered: the model's parameters and buffers.

    Attributes:
        real_of: what fake tensors stand for, by their ids.
    """

    def __init__(self, device: torch.device, registered: Sequence[Tensor]) -> None:
        self._device = device
        self._registered = {id(tensor) for tensor in registered}
        self._some_are_empty = any(tensor.is_meta for tensor in registered)
        self._twins: dict[int, _Twin] = {}
        self.real_of: dict[int, Tensor] = {}
        self._kept: list[Tensor] = []
        self._unseen_writes: Counter[int] = Counter()

    @functools.cached_property
    def _mode(self) -> FakeTensorMode:
        """Made when something is run without data: making it takes long."""
        return FakeTensorMode(allow_non_fake_inputs=True)

    def is_needed(self, module: nn.Module | None, given: Sequence[Tensor]) -> bool:
        """Tell whether a call meets a tensor without data."""
        if any(map(self._lacks_data, given)):
            return True
        if module is None or not (self._some_are_empty or self._twins):
            return False
        return any(map(self._lacks_data, (*module.parameters(), *module.buffers())))

    def run(self, activity: Activity, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what a call returns, with fake tensors for its tensors.

        To be called with torch functions unseen; they are seen while the call is made.

        Raises:
            CaptureError: if the call needs data.
            MadeWithDataError: if it writes to memory that has data.
        """
        given = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fakes = map_tree(self._fake, (args, kwargs))
        before = [self.version(tensor) for tensor in given]
        try:
            with _quiet():
                output = self._proceed(activity, *fakes)
        except (NotImplementedError, RuntimeError) as error:
            if activity.is_block and (made := self._with_zeros(activity, args, kwargs)):
                return made[0]
            msg = (
                f"{activity.name} cannot be run without data, which is needed to record a model "
                "some of whose parameters are not here (on the meta device, or other ranks'): "
                f"{error}; {_REMEDY}"
            )
            raise CaptureError(msg) from error
        if updates_statistics(activity.proceed, args, kwargs):
            self.notice_statistics(leaves(fakes))
        for tensor, version in zip(given, before, strict=True):
            is_made = not isinstance(tensor, FakeTensor) and id(tensor) not in self._registered
            if is_made and self.version(tensor) != version:
                msg = (
                    f"{activity.name} writes in place to memory that was made with data, which "
                    "cannot be recorded where some parameters are not here (on the meta device, or "
                    f"other ranks'); {_REMEDY}"
                )
                raise MadeWithDataError(msg, tensor)
        return map_tree(self.real, output)

    def _with_zeros(
        self, activity: Activity, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any] | None:
        """Run a block on zeros where it has to see numbers, for the shapes of what it returns.

        As in any recording, these are taken not to depend on the numbers.

        Returns:
            What it returns, with fake tensors; None if it does not run on zeros either.
        """
        zeros = Zeros(self._device)
        modules = activity.module.modules() if activity.module is not None else ()
        tables = [table for module in modules for table in tables_of(module)]
        state = [(table, key, leaf) for table in tables for key, leaf in items_of(table)]
        own_args, own_kwargs = map_tree(zeros.instead_of, (args, kwargs))
        try:
            for table, key, leaf in state:
                table[key] = zeros.instead_of(leaf)
            self.real_of.update(zeros.originals())
            with torch._C._EnableTorchFunction():
                output = activity.proceed(*own_args, **own_kwargs)
        except Exception:  # it is refused for what it raised without data
            return None
        finally:
            written = zeros.written()
            written += [leaf for table, key, leaf in state if zeros.replaced(table[key], leaf)]
            for table, key, leaf in state:
                table[key] = leaf
            for key in zeros.originals():
                self.real_of.pop(key, None)
        for tensor in written:
            if isinstance(tensor, FakeTensor) or id(tensor) in self._registered:
                self._fake(tensor)
                self._unseen_writes[id(tensor)] += 1
            else:
                msg = f"{activity.name} writes in place to memory made with data; {_REMEDY}"
                raise MadeWithDataError(msg, tensor)
        return (map_tree(lambda leaf: zeros.original(leaf, self._empty), output),)

    def notice_statistics(self, given: Sequence[Any]) -> None:
        """Take the buffers that fake tensors stand for as written to, where torch does not say."""
        for leaf in given:
            real = self.real_of.get(id(leaf))
            if real is not None and not isinstance(real, nn.Parameter):
                self._unseen_writes[id(real)] += 1

    def version(self, tensor: Tensor) -> int:
        """Return how often ``tensor`` has been written to, with data and without."""
        version = version_of(tensor)
        if not (self._twins or self._unseen_writes):
            return version
        twin = self._twins.get(id(tensor))
        without_data = 0 if twin is None else version_of(twin.fake) - twin.fake_version
        return version + without_data + self._unseen_writes[id(tensor)]

    def written(self) -> list[Tensor]:
        """Return the parameters and buffers that were written to without data."""
        found = (twin.real for key, twin in self._twins.items() if key in self._registered)
        return [tensor for tensor in found if self._is_stale(tensor)]

    def _is_stale(self, tensor: Tensor) -> bool:
        return id(tensor) in self._twins and self.version(tensor) != version_of(tensor)

    def _lacks_data(self, tensor: Tensor) -> bool:
        if tensor.is_meta or isinstance(tensor, FakeTensor):
            return True
        return bool(self._twins) and self._is_stale(tensor)

    def _proceed(self, activity: Activity, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        made_fake = self._mode if activity.is_forced else nullcontext()
        proceed = _STAND_INS.get(function_name(activity.proceed), activity.proceed)
        modules = activity.module.modules() if activity.module is not None else ()
        tables = [table for module in modules for table in tables_of(module)]
        with self._replaced(tables), made_fake, torch._C._EnableTorchFunction():
            return proceed(*args, **kwargs)

    @contextmanager
    def _replaced(self, tables: Sequence[Table]) -> Iterator[None]:
        """Put fake tensors into tables of modules; what else is put there, is a write."""
        before = [(table, key, leaf) for table in tables for key, leaf in items_of(table)]
        for table, key, leaf in before:
            table[key] = self._fake(leaf)
        try:
            yield
        finally:
            for table, key, leaf in before:
                if table[key] is not self._twins[id(leaf)].fake:
                    self._unseen_writes[id(leaf)] += 1
                table[key] = leaf

    def _fake(self, leaf: Any) -> Any:
        """Return what stands for a tensor, the same one for as long as its data stays."""
        if not isinstance(leaf, Tensor) or isinstance(leaf, FakeTensor):
            return leaf
        twin = self._twins.get(id(leaf))
        if twin is None or twin.real_version != version_of(leaf):
            fake = self._made(leaf)
            twin = _Twin(leaf, fake, version_of(leaf), version_of(fake))
            self._twins[id(leaf)] = twin
            self._kept.append(fake)
            self.real_of[id(fake)] = leaf
        return twin.fake

    def real(self, leaf: Any) -> Any:
        """Return what a call was given, where it returns what stands for it."""
        return self.real_of.get(id(leaf), leaf)

    def _made(self, leaf: Tensor) -> Tensor:
        is_number = leaf.dim() == 0 and not leaf.is_meta and not leaf.requires_grad
        value = leaf.item() if is_number else None
        if value is not None:  # kept: steps counted in buffers, say
            with self._mode:
                return torch.tensor(value, dtype=leaf.dtype, device=self._device)
        return self._empty(leaf)

    def _empty(self, leaf: Tensor) -> Tensor:
        with self._mode:
            empty = torch.empty_strided(
                leaf.shape, leaf.stride(), dtype=leaf.dtype, device=self._device
            )
            return empty.requires_grad_(leaf.requires_grad)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let torch not log what fails without data: it is tried otherwise, or refused."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def tables_of(module: nn.Module) -> list[Table]:
    """Return the tables of ``module`` that hold tensors."""
    lists = [value for value in vars(module).values() if type(value) is list]
    return [module._parameters, module._buffers, *lists]


def items_of(table: Table) -> list[tuple[Any, Tensor]]:
    """Return the tensors in a table and where they are."""
    pairs = table.items() if isinstance(table, dict) else enumerate(table)
    return [(key, leaf) for key, leaf in pairs if isinstance(leaf, Tensor)]
