"""What kind of torch function a call is: metadata, effect, random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intandem.recorder.trees import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

_METADATA_GETTERS = frozenset(["shape", "ndim", "dtype"])
_METADATA = frozenset(
    "size dim ndimension numel nelement element_size stride storage_offset is_contiguous "
    "is_floating_point is_complex is_conj is_neg is_inference is_signed is_pinned is_shared "
    "is_same_size is_set_to get_device type data_ptr untyped_storage storage storage_type "
    "__len__ __hash__ __repr__ __str__ __dir__ has_names dense_dim sparse_dim "
    "is_coalesced result_type can_cast dim_order _is_view _is_zerotensor "
    "is_tensor is_nested promote_types sym_size sym_numel sym_stride".split()
)
_EFFECTS = frozenset(["__setitem__", "__set__", "__delitem__", "register_hook", "retain_grad"])
_GRADIENT_HOOKS = frozenset(["register_hook", "register_post_accumulate_grad_hook"])
_FORBIDDEN = frozenset(["backward", "grad", "numpy", "__array__", "share_memory_"])

_DATA_SHAPED = frozenset(
    "nonzero nonzero_numpy argwhere unique unique_consecutive unique_dim bincount "
    "repeat_interleave".split()
)
_MADE_OF_NUMBERS = frozenset(
    "arange range zeros ones empty full linspace logspace eye rand randn randint randperm "
    "tril_indices triu_indices".split()
)
_SIZED_BY_NUMBERS = _MADE_OF_NUMBERS | frozenset(
    "new_zeros new_ones new_empty new_full view reshape expand broadcast_to repeat tile narrow "
    "unflatten unfold split split_with_sizes tensor_split chunk topk pad interpolate as_strided "
    "diagonal diag diag_embed".split()
)

_DROPOUTS = frozenset(
    "dropout dropout_ alpha_dropout alpha_dropout_ feature_dropout feature_dropout_ dropout1d "
    "dropout2d dropout3d feature_alpha_dropout feature_alpha_dropout_ native_dropout".split()
)
_SAMPLERS = frozenset(
    "bernoulli bernoulli_ rand randn randint randperm rand_like randn_like randint_like normal "
    "normal_ uniform_ random_ exponential_ cauchy_ geometric_ log_normal_ multinomial poisson "
    "gumbel_softmax fractional_max_pool2d fractional_max_pool3d".split()
)
_NORMALISATIONS = frozenset(["batch_norm", "instance_norm"])
_RECURRENT = frozenset(["lstm", "gru", "rnn_tanh", "rnn_relu"])
_MAY_DRAW = (
    _SAMPLERS
    | _DROPOUTS
    | _RECURRENT
    | {"scaled_dot_product_attention", "multi_head_attention_forward", "rrelu", "rrelu_"}
)
_MAY_DRAW_OR_COUNT = _MAY_DRAW | _NORMALISATIONS
OF_NOTE = _MAY_DRAW_OR_COUNT | _GRADIENT_HOOKS
"""Names of functions that may draw, update statistics, or hook gradients."""
_MAY_LOOK_AT_NUMBERS = (
    _DATA_SHAPED
    | _SIZED_BY_NUMBERS
    | {"where", "one_hot", "_pack_padded_sequence", "__getitem__", "masked_select"}
)
_SHAPED_BY_LATER = (_SIZED_BY_NUMBERS - _MADE_OF_NUMBERS - _DATA_SHAPED) | {"__getitem__"}


def function_name(function: Callable[..., Any]) -> str:
    """Return the plain name of a torch function; ``T`` for the getter behind ``Tensor.T``."""
    name = getattr(function, "__name__", None)
    if name is None:
        return str(function)
    if name in {"__get__", "__set__"}:
        return str(getattr(getattr(function, "__self__", None), "__name__", name))
    return str(name)


def is_getter(function: Callable[..., Any]) -> bool:
    """Tell whether ``function`` reads an attribute of a tensor."""
    return getattr(function, "__name__", "") == "__get__"


def is_metadata(function: Callable[..., Any]) -> bool:
    """Tell whether ``function`` reads something the shapes and dtypes decide."""
    name = getattr(function, "__name__", "")
    return name in _METADATA or (name == "__get__" and function_name(function) in _METADATA_GETTERS)


def is_effect(function: Callable[..., Any]) -> bool:
    """Tell whether ``function`` is called for what it does to its arguments."""
    return getattr(function, "__name__", "") in _EFFECTS


def is_gradient_hook(function: Callable[..., Any]) -> bool:
    """Tell whether ``function`` has a gradient shown to a function of the user's."""
    return getattr(function, "__name__", "") in _GRADIENT_HOOKS


def is_forbidden(function: Callable[..., Any]) -> bool:
    """Tell whether replaying ``function`` could not give what it gave when recorded."""
    return getattr(function, "__name__", "") in _FORBIDDEN


def may_draw_or_count(function: Callable[..., Any]) -> bool:
    """Tell whether a call of ``function`` may be random, or may update statistics."""
    return getattr(function, "__name__", "") in _MAY_DRAW_OR_COUNT


def is_random(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Tell whether this call of ``function`` draws random numbers."""
    name = function_name(function)
    if name not in _MAY_DRAW:
        return False
    if name in _SAMPLERS:
        return True
    if name in _DROPOUTS:
        return _number(args, kwargs, 1, "p", 0.5) > 0 and bool(
            _argument(args, kwargs, 2, ("training", "train"), default=True)
        )
    if name == "scaled_dot_product_attention":
        return _number(args, kwargs, 4, "dropout_p", 0.0) > 0
    if name == "multi_head_attention_forward":
        training = _argument(args, kwargs, 13, ("training",), default=True)
        return bool(training) and _number(args, kwargs, 10, "dropout_p", 0.0) > 0
    if name in {"rrelu", "rrelu_"}:
        return bool(_argument(args, kwargs, 3, ("training",), default=False))
    return _recurrent_dropout(args)


def updates_statistics(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Tell whether this call writes to buffers it is given without torch counting the write."""
    if function_name(function) not in _NORMALISATIONS:
        return False
    return bool(_argument(args, kwargs, 5, ("training", "use_input_stats"), default=False))


def may_look_at_numbers(function: Callable[..., Any]) -> bool:
    """Tell whether numbers in tensors may decide the shape of what ``function`` returns."""
    return getattr(function, "__name__", "") in _MAY_LOOK_AT_NUMBERS


def looks_at_later_arguments(function: Callable[..., Any]) -> bool:
    """Tell whether only numbers in tensors after the first argument may decide the shape."""
    return getattr(function, "__name__", "") in _SHAPED_BY_LATER


def has_data_dependent_shape(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Tell whether the values of the arguments decide the shape of the result."""
    name = function_name(function)
    if name == "where":
        return len(args) == 1
    if name == "repeat_interleave":
        return len(args) > 1 and not isinstance(args[1], int)
    if name == "one_hot":
        return _number(args, kwargs, 1, "num_classes", -1) < 0
    return name in _DATA_SHAPED


def packs_by_length(function: Callable[..., Any]) -> bool:
    """Tell whether ``function`` packs its first argument by the lengths in its second."""
    return function_name(function) == "_pack_padded_sequence"


def sizes_given(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Tensor]:
    """Return the tensors that are given as sizes (``x[:, :t]``, ``torch.arange(t)``)."""
    name = function_name(function)
    sizes: Any = ()
    if name == "__getitem__":
        keys = args[1] if isinstance(args[1], tuple) else args[1:]
        sizes = [key for key in keys if isinstance(key, slice)]
    elif name in _MADE_OF_NUMBERS:
        sizes = (args, dict(kwargs))
    elif name in _SIZED_BY_NUMBERS:
        sizes = (args[1:], dict(kwargs))
    return tensors_in(sizes)


def selects_by_mask(function: Callable[..., Any]) -> bool:
    """Tell whether boolean tensors among the later arguments select elements of the first."""
    return function_name(function) in {"__getitem__", "masked_select"}


def _recurrent_dropout(args: tuple[Any, ...]) -> bool:
    """``(..., has_biases, num_layers, dropout, train, bidirectional[, batch_first])``."""
    floats = [a for a in args if isinstance(a, float)]
    return bool(floats) and floats[0] > 0 and _train_flag(args, floats[0])


def _train_flag(args: tuple[Any, ...], dropout: float) -> bool:
    index = next(i for i, a in enumerate(args) if isinstance(a, float) and a == dropout)
    return bool(args[index + 1]) if index + 1 < len(args) else True


def _argument(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    index: int,
    names: tuple[str, ...],
    default: Any,
) -> Any:
    if index < len(args):
        return args[index]
    return next((kwargs[name] for name in names if name in kwargs), default)


def _number(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], index: int, name: str, default: float
) -> float:
    return float(_argument(args, kwargs, index, (name,), default))
