"""Every module call of one thread is seen, and nothing is left of it afterwards."""

import gc
import threading
import weakref

import torch
from torch import nn
from torch.autograd import Function

from intandem.recorder.interception import intercepted


class Listener:
    """Notes the modules that it is told of."""

    def __init__(self):
        self.modules = []

    def on_module(self, module, proceed, args, kwargs):
        self.modules.append(module)
        return proceed(*args, **kwargs)

    def on_autograd_function(self, function, proceed, args, kwargs):
        return proceed(*args, **kwargs)

    def on_torch_function(self, function, args, kwargs):
        return function(*args, **kwargs)


class Named(nn.Module):
    """Has a call of its own, and takes keywords."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)

    def forward(self, *args, last=0):
        return [*args, last]


def _method():
    method = vars(nn.Module)["_call_impl"]
    return method, method.__code__, method.__kwdefaults__


def test_nested_listeners_hear_every_module_and_leave_none_behind():
    """Modules that nobody has named are heard too; torch's own method is as it was afterwards."""
    before, own = _method(), vars(Named)["__call__"]
    outer, inner, module, other = Listener(), Listener(), Named(), nn.Identity()

    with intercepted([module], outer):
        with intercepted([module], inner):
            assert module(1, 2, last=3) == [1, 2, 3]
        assert other(4) == 4

    assert module(1) == [1, 0]
    assert set(inner.modules) == {module}
    assert set(outer.modules) == {module, other}
    assert _method() == before
    assert vars(Named)["__call__"] is own


def test_what_keeps_apply_keeps_no_listener():
    """A module imported by a call may keep ``apply`` of a function of its own for ever."""

    class Twice(Function):
        @staticmethod
        def forward(ctx, x):
            del ctx
            return 2 * x

    listener = Listener()
    with intercepted((), listener):
        apply = Twice.apply
    gone = weakref.ref(listener)
    del listener
    gc.collect()
    assert gone() is None
    assert apply(torch.ones(2)).tolist() == [2, 2]


def test_other_threads_are_not_heard():
    """They call their modules as ever while a listener is there."""
    listener, returned = Listener(), []
    with intercepted([], listener):
        thread = threading.Thread(target=lambda: returned.append(nn.Identity()(5)))
        thread.start()
        thread.join()
    assert returned == [5]
    assert listener.modules == []
