"""What ``torch.cuda`` says and does where its devices are pretended."""

from contextlib import contextmanager

import torch

_CUDA = 1
"""Number of the kind of device, in streams."""


def patch(library):
    """Let ``torch.cuda`` know of the devices of ``library``."""
    torch.ops.load_library(library)
    cuda, ops = torch.cuda, torch.ops.pretend_gpu
    generators = tuple(ops.default_generator(device) for device in range(2))

    def generator(device=None):
        return generators[_index(device)]

    def manual_seed_all(seed):
        for one in generators:
            one.manual_seed(seed)

    def set_rng_state(state, device="cuda"):
        generator(device).set_state(state)

    def reset_peak_memory_stats(device=None):
        ops.bytes_peak(_index(device), True)

    instead = {
        "Event": Event,
        "Stream": Stream,
        "current_device": _index,
        "current_stream": _current_stream,
        "default_generators": generators,
        "default_stream": lambda device=None: _stream(0, _index(device)),
        "device": Current,
        "device_count": lambda: 2,
        "empty_cache": lambda: None,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "a pretend GPU",
        "get_rng_state": lambda device="cuda": generator(device).get_state(),
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_current_stream_capturing": lambda: False,
        "manual_seed": lambda seed: generator().manual_seed(seed),
        "manual_seed_all": manual_seed_all,
        "max_memory_allocated": lambda device=None: ops.bytes_peak(_index(device), False),
        "mem_get_info": lambda device=None: (60 << 30, 80 << 30),
        "memory_allocated": lambda device=None: ops.bytes_live(_index(device)),
        "reset_peak_memory_stats": reset_peak_memory_stats,
        "set_device": _set_device,
        "set_rng_state": set_rng_state,
        "set_stream": lambda chosen: chosen.__enter__(),
        "stream": _on_stream,
        "synchronize": lambda device=None: ops.synchronize(),
        "_initialized": True,
        "_lazy_init": lambda: None,
    }
    for name, value in instead.items():
        setattr(cuda, name, value)
    torch._C._cuda_isInBadFork = False
    torch.backends.cudnn.is_acceptable = lambda tensor: False
    torch.UntypedStorage.clone = _clone


class Stream(torch.Stream):
    """Stands for ``torch.cuda.Stream``."""

    def __new__(cls, device=None, priority=0, **known):
        """Return a new stream of a device; or the one that is ``known``."""
        if known:
            return super().__new__(cls, **known)
        return super().__new__(cls, torch.device("cuda", _index(device)), priority=priority)

    @property
    def cuda_stream(self):
        """Its number."""
        return self.stream_id


class Event(torch.Event):
    """Stands for ``torch.cuda.Event``."""

    def __new__(cls, enable_timing=False, blocking=False, interprocess=False, external=False):
        """Return a new event of the current device."""
        del blocking, interprocess, external
        return super().__new__(cls, "cuda", enable_timing=enable_timing)


class Current:
    """Stands for ``torch.cuda.device``."""

    def __init__(self, chosen):
        """Choose a device; None for no other."""
        self._chosen = None if chosen is None else _index(chosen)
        self._before = 0

    def __enter__(self):
        """Make it the current one."""
        self._before = _index()
        if self._chosen is not None:
            _set_device(self._chosen)

    def __exit__(self, *_):
        """Make the one before the current one."""
        _set_device(self._before)


@contextmanager
def _on_stream(chosen):
    if chosen is None:
        yield
        return
    with chosen:
        yield


def _index(device=None):
    if device is None:
        return torch._C._accelerator_getDeviceIndex()
    index = device if isinstance(device, int) else torch.device(device).index
    return _index() if index is None else index


def _set_device(chosen):
    torch._C._accelerator_setDeviceIndex(_index(chosen))


def _stream(number, device):
    return Stream(stream_id=number, device_index=device, device_type=_CUDA)


def _current_stream(device=None):
    now = torch.accelerator.current_stream(torch.device("cuda", _index(device)))
    return _stream(now.stream_id, now.device_index)


_plain_clone = torch.UntypedStorage.clone


def _clone(storage):
    """A copy of a storage; torch's own knows no CUDA where it was built without."""
    if storage.device.type == "cpu":
        return _plain_clone(storage)
    whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return whole.clone().untyped_storage()
