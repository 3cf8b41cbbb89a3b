"""What a recording cannot hold, in words: where it is, what it is, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.recorder.graph import Guard


def hidden_in_object(call: str, kind: str, place: str) -> CaptureError:
    """A cache or another Python object carries tensors from call to call."""
    return CaptureError(
        f"{call} is given a {kind} that holds tensors, at {place}; such an object (a cache, say) "
        "cannot cross stages: switch it off, or pass its tensors as arguments"
    )


def reached_through_object(function: str, place: str) -> CaptureError:
    """A block reads a tensor that it was not given."""
    return CaptureError(
        f"a tensor made outside a block reaches {function}() inside it through a Python object, at "
        f"{place}; pass it as an argument"
    )


def left_inside(place: str) -> CaptureError:
    """Glue reads a tensor that a block made and did not return."""
    return CaptureError(
        f"a tensor made inside a block is used outside it, at {place}, and is neither among what "
        "the block or a module in it returns nor left as it is in an attribute of one; return it, "
        "instead of putting it into a list or a dictionary"
    )


def not_registered(place: str) -> CaptureError:
    """A tensor that needs gradients comes from nowhere."""
    return CaptureError(
        "forward uses a tensor that needs gradients and is neither a parameter nor made in this "
        f"call, at {place}; register it as a parameter, or detach it"
    )


def not_repeatable(function: str, place: str) -> CaptureError:
    """A function whose second call would not give what a recording needs."""
    return CaptureError(
        f"forward calls {function}() between blocks, at {place}; move it into a module of its own "
        "and keep that whole (in a ModuleList, or blocks=[...]), or move it out of forward"
    )


def backward_hook(name: str) -> CaptureError:
    """A module that is no block has hooks on its gradients."""
    what = f"module {name}" if name else "the model"
    return CaptureError(
        f"{what} has a backward hook and is no block, so nothing would call it; put the hook on "
        "blocks, or keep the module whole: " + (f'blocks=["{name}"]' if name else "blocks=[...]")
    )


def legacy_backward_hook(name: str) -> CaptureError:
    """A module has a hook whose gradients are those of its last operation."""
    return CaptureError(
        f"module {name} has a hook of register_backward_hook(), which sees gradients of its last "
        "operation alone; put it on with register_full_backward_hook()"
    )


def late_hook(place: str) -> CaptureError:
    """A hook is put on a tensor that has been read already."""
    return CaptureError(
        f"forward calls register_hook() on a tensor that was used before, at {place}; a stage "
        "could show it a part of the gradient only: call it right after the tensor is made"
    )


def parameter_written(name: str, place: str) -> CaptureError:
    """Forward changes a parameter, which building would then have done too."""
    return CaptureError(
        f"forward writes to the parameter {name}, {place}; parameters change between steps only: "
        "write to it after optimizer.step(), or make it a buffer"
    )


def transformed(function: str, place: str) -> CaptureError:
    """Calls within a transform of functions are on tensors that exist only there."""
    return CaptureError(
        f"forward calls {function}() under torch.vmap or another transform of torch.func between "
        f"blocks, at {place}, where tensors are not what they are outside; keep the module around "
        "it whole (blocks=[...]), or compute it outside of forward and pass it in the batch"
    )


def attribute_set(name: str, where: str) -> CaptureError:
    """Python state that forward changes would stay as it was when recorded."""
    return CaptureError(
        f"forward sets {name} between blocks{where}, which a recording cannot repeat; keep it in a "
        "buffer that is written to in place, keep the module around it whole (blocks=[...]), or "
        "set it outside of forward"
    )


def constant_changes(call: str, before: object, after: object, place: str) -> CaptureError:
    """Glue computed with another Python value when it ran again on the same batch."""
    return CaptureError(
        f"forward calls {call}() with {before!r} in one run and with {after!r} in the next on the "
        f"same batch, at {place}, so something in Python is carried from run to run (a global, a "
        "clock, an iterator); a recording would repeat the first for ever: keep it in a buffer "
        "that is written to in place, or pass it in the batch"
    )


def not_repeated(what: str) -> CaptureError:
    """A second run on the same batch with the same draws gave other numbers."""
    return CaptureError(
        "forward returns other numbers when it is run again on the same batch with the same random "
        f"draws, so something is carried from run to run outside of buffers; {what}: keep it in a "
        "buffer that is written to in place, or pass it in the batch"
    )


def block_attribute_set(name: str, when: str) -> CaptureError:
    """Python hands something to a block through an attribute."""
    return CaptureError(
        f"forward sets {name}, an attribute of a block, {when}; a stage would not see it: pass it "
        "as an argument, set it before the pipeline is built, or keep both whole in one module "
        "(blocks=[...])"
    )


def depends_on_activation(guard: Guard) -> CaptureError:
    """What Python does next hangs on numbers that only a run knows."""
    whole = (
        f"keep the module around it whole (blocks=[{guard.module!r}])"
        if guard.module
        else "move that code into a module of its own and keep it whole (blocks=[...])"
    )
    return CaptureError(
        f"what forward does next depends on the value of an activation or parameter, at "
        f"{guard.location}; it may differ for every micro-batch, so it cannot be recorded: "
        f"{whole}, or use torch.where; what is only looked at can be looked at in a forward hook "
        "of a block"
    )


def opened(names: Sequence[str], what: str) -> CaptureError:
    """Forward does something that only whole blocks can do."""
    return CaptureError(f"forward {what} now; {kept_whole(names)}")


def kept_whole(names: Sequence[str]) -> str:
    """Say how blocks that are cut inside can be kept whole."""
    return f"{', '.join(names)} may be cut inside: blocks={list(names)} keeps it whole"
