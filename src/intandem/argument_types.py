"""Arguments of public functions that are of another type than they should be, by name."""

from __future__ import annotations

from numbers import Real


def require_type(name: str, given: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Refuse what is no ``kind``.

    Raises:
        TypeError: names the argument, and says what it is and what was expected.
    """
    if not isinstance(given, kind):
        found = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        msg = f"{name} is {found if isinstance(given, type) else f'a {found}'}; expected {expected}"
        raise TypeError(msg)


def require_int(name: str, given: object) -> None:
    """Refuse what is neither None nor a whole number.

    Raises:
        TypeError: names the argument, and says what it is.
    """
    if given is not None and type(given) is not int:
        msg = f"{name}={given!r} is a {type(given).__name__}; expected an int"
        raise TypeError(msg)


def require_number(name: str, given: object) -> None:
    """Refuse what is neither None nor a number.

    Raises:
        TypeError: names the argument, and says what it is.
    """
    if given is not None and (isinstance(given, bool) or not isinstance(given, Real)):
        msg = f"{name}={given!r} is a {type(given).__name__}; expected a number"
        raise TypeError(msg)
