"""Two pretend CUDA devices, for tests on machines without a GPU; see pretend_gpu.cpp.

    PYTHONPATH=tests/pretend_gpu/site python -m pytest -m gpu tests/gpu tests/multiprocess

With that path every Python process has them (``sitecustomize``). Needs g++.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".cpp")


def install() -> None:
    """Compile and load the library, and let ``torch.cuda`` and ``torch.distributed`` know of it.

    Nothing happens in a Python without torch, or without g++.

    Raises:
        RuntimeError: if torch has been imported already.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None or shutil.which("g++") is None:
        return
    if "torch" in sys.modules:
        msg = "pretend GPUs must be there before torch is imported: set PYTHONPATH instead"
        raise RuntimeError(msg)
    library = str(_compiled(Path(spec.origin).parent))
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)

    import pretend_cuda
    import pretend_nccl

    pretend_cuda.patch(library)
    pretend_nccl.patch()


def host_waits(*, here: bool = False) -> list[str]:
    """Return what a GPU's host would have waited for since this was last asked.

    ``here``: on the calling thread.
    """
    import torch

    return list(torch.ops.pretend_gpu.host_waits(threading.get_native_id() if here else 0))


def _compiled(torch_home: Path) -> Path:
    """Return the library, compiled for this torch: a quarter of a minute where it was not yet."""
    version = (torch_home / "version.py").read_bytes()
    key = hashlib.blake2b(_SOURCE.read_bytes() + version + str(torch_home).encode(), digest_size=8)
    folder = Path(tempfile.gettempdir()) / f"pretend_gpu_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{key.hexdigest()}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(library, torch_home)
    return library


def _compile(library: Path, torch_home: Path) -> None:
    include, lib = torch_home / "include", torch_home / "lib"
    unfinished = library.with_suffix(".tmp")
    subprocess.run(
        [
            *("g++", "-std=c++20", "-O1", "-fPIC", "-shared", "-w", str(_SOURCE)),
            *(f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"),
            *(f"-L{lib}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{lib}", "-o", str(unfinished)),
        ],
        check=True,
    )
    unfinished.rename(library)
