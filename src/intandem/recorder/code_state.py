"""What glue runs and reads besides attributes: hooks, functions, modules between blocks, globals.

A recording holds what they did when it was made; another is made once any of them is another.
Globals and class attributes are those that ``forward`` of modules outside blocks names, or methods
and functions of the same file that it names: numbers, tensors, and lists and dictionaries of them.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterator

_NUMBERS = (int, float, complex, bool, str, bytes, type(None))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_MAX_ITEMS = 64
_OF_TORCH = "torch."


class Same:
    """Equal to another if it stands for the very same object, which it keeps alive.

    Args:
        value: any object.
    """

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class CodeState:
    """Finds what modules outside blocks run and read.

    Args:
        model: the user's module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._functions: dict[type, tuple[FunctionType, ...]] = {}

    def now(self, blocks: Collection[nn.Module]) -> dict[str, Hashable]:
        """Return it by name, with values that are equal as long as nothing is another.

        Args:
            blocks: modules kept whole.
        """
        found: dict[str, Hashable] = {}
        kinds: dict[type, None] = {}
        for name, module in self._model.named_modules():
            if module in blocks:
                continue
            kinds[type(module)] = None
            found[f"module {name}"] = Same(module)
            for table in _HOOKS:
                if hooks := vars(module)[table]:
                    found[f"hooks of {name} {table}"] = tuple(map(Same, hooks.values()))
            for key, value in vars(module).items():
                if key not in {*_HOOKS, "_modules"}:
                    held = [Same(f) for f in _in_container(value) if callable(f)]
                    if held:
                        found[f"function {name}.{key}"] = tuple(held)
        for kind in kinds:
            if not kind.__module__.startswith(_OF_TORCH):
                self._add_read_by(kind, found)
        return found

    def _add_read_by(self, kind: type, found: dict[str, Hashable]) -> None:
        """Add class attributes of ``kind``, and globals and closures of its methods."""
        if kind not in self._functions:
            self._functions[kind] = tuple(_reached(kind))
        of_class = {k: v for base in reversed(_own_bases(kind)) for k, v in vars(base).items()}
        for function in self._functions[kind]:
            for key in function.__code__.co_names:
                if key in of_class:
                    _add(f"{kind.__qualname__}.{key}", of_class[key], found)
                if key in function.__globals__:
                    _add(f"{function.__module__}.{key}", function.__globals__[key], found)
            cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
            for key, cell in cells:
                if key != "__class__":
                    _add(f"{function.__qualname__}.{key}", _content(cell), found)


def _add(name: str, value: Any, found: dict[str, Hashable]) -> None:
    items = list(_in_container(value))
    if len(items) <= _MAX_ITEMS and all(isinstance(i, (*_NUMBERS, Tensor)) for i in items):
        found[f"global {name}"] = tuple(
            Same(i) if isinstance(i, Tensor) else (type(i).__name__, i) for i in items
        )


def _in_container(value: Any) -> Iterator[Any]:
    """Yield what a list, tuple or dictionary holds; what is none of them is yielded itself."""
    if type(value) in {list, tuple}:
        yield from value
    elif type(value) is dict:
        for key, item in value.items():
            yield key if isinstance(key, _NUMBERS) else None
            yield item
    else:
        yield value


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _own_bases(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if not base.__module__.startswith(_OF_TORCH)][:-1]


def _reached(kind: type) -> Iterator[FunctionType]:
    """Yield a class's ``forward``, the methods that it names, and functions of their files."""
    of_class = {name: f for base in reversed(_own_bases(kind)) for name, f in vars(base).items()}
    todo: list[Any] = [of_class.get("forward")]
    seen: set[int] = set()
    while todo:
        function = todo.pop()
        function = function.fget if isinstance(function, property) else function
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        yield function
        names = function.__code__.co_names
        named = [function.__globals__.get(name) for name in names]
        todo += [f for f in named if getattr(f, "__module__", None) == function.__module__]
        todo += [of_class[name] for name in names if name in of_class]
        todo += [_content(cell) for cell in function.__closure__ or ()]
