"""Fill recorded arguments with tensors, fast: what to do is worked out once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intandem.recorder.graph import Attr, Ref
from intandem.recorder.trees import leaves, map_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


def compile_template(
    template: Any, attribute: Callable[[str], Callable[[], Tensor]]
) -> Callable[[Mapping[int, Tensor]], Any]:
    """Return what replaces every Ref and Attr of ``template`` from an environment.

    Args:
        template: arguments or an output, as recorded. Lists and dictionaries are made anew on
            every call, so that whoever gets them may change them.
        attribute: returns what finds the parameter or buffer of a name.
    """
    if isinstance(template, Ref):
        value = template.value
        return lambda environment: environment[value]
    if isinstance(template, Attr):
        source = attribute(template.name)
        return lambda environment: source()
    kind = type(template)
    if kind is dict:
        keys = tuple(template)
        fill_values = _all(template.values(), attribute)
        return lambda environment: dict(zip(keys, fill_values(environment), strict=True))
    if kind is list:
        return _all(template, attribute)
    if not any(isinstance(leaf, Ref | Attr) for leaf in leaves(template)):
        return lambda environment: template
    if kind is tuple:
        fill_items = _all(template, attribute)
        return lambda environment: tuple(fill_items(environment))
    return _general(template, attribute)


def _all(
    templates: Any, attribute: Callable[[str], Callable[[], Tensor]]
) -> Callable[[Mapping[int, Tensor]], list[Any]]:
    fillers = [compile_template(template, attribute) for template in templates]
    return lambda environment: [fill(environment) for fill in fillers]


def _general(
    template: Any, attribute: Callable[[str], Callable[[], Tensor]]
) -> Callable[[Mapping[int, Tensor]], Any]:
    """For containers of other types: walked on every call."""
    names = {leaf.name for leaf in leaves(template) if isinstance(leaf, Attr)}
    sources = {name: attribute(name) for name in names}

    def fill(environment: Mapping[int, Tensor]) -> Any:
        def replace(leaf: Any) -> Any:
            if type(leaf) is Ref:
                return environment[leaf.value]
            return sources[leaf.name]() if type(leaf) is Attr else leaf

        return map_tree(replace, template)

    return fill
