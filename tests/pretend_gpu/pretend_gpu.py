"""Two pretend CUDA devices, for tests on machines without a GPU; see pretend_gpu.cpp.

    PYTHONPATH=tests/pretend_gpu/site python -m pytest -m gpu tests/gpu tests/multiprocess

With that path every Python process has them (``sitecustomize``), where torch was built without CUDA
and there is g++; ``why_not`` says why not otherwise. Real GPUs are taken where there are any.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

_SOURCES = sorted(Path(__file__).parent.glob("*.[ch]*"))
_FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared", "-w")

why_not = ""


def install() -> None:
    """Compile and load the library, and let ``torch.cuda`` and ``torch.distributed`` know of it.

    Nothing happens in a Python without torch.

    Raises:
        RuntimeError: if torch has been imported already.
    """
    global why_not
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return
    home = Path(spec.origin).parent
    if why_not := _why_not(home):
        return
    if "torch" in sys.modules:
        msg = "pretend GPUs must be there before torch is imported: set PYTHONPATH instead"
        raise RuntimeError(msg)
    library = str(_compiled(home))
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


def _why_not(torch_home: Path) -> str:
    """Say why there are no pretend GPUs; nothing if there can be."""
    for kind in ("cuda", "hip"):
        if re.search(
            rf"^{kind}\b[^=]*= *['\"]", (torch_home / "version.py").read_text(), re.MULTILINE
        ):
            return f"torch was built with {kind}: real GPUs, or none"
    return "" if shutil.which("g++") else "there is no g++ to compile them with"


def _compiled(torch_home: Path) -> Path:
    """Return the library, compiled for this torch: a quarter of a minute where it was not yet."""
    facts = [path.read_bytes() for path in (*_SOURCES, torch_home / "version.py")]
    key = hashlib.blake2b(b"".join(facts) + f"{torch_home} {_FLAGS}".encode(), digest_size=8)
    folder = Path(sys.prefix) / "pretend_gpu"
    folder.mkdir(exist_ok=True)
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
            *("g++", *_FLAGS, *(str(path) for path in _SOURCES if path.suffix == ".cpp")),
            *(f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"),
            *(f"-L{lib}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{lib}", "-o", str(unfinished)),
        ],
        check=True,
    )
    unfinished.rename(library)
