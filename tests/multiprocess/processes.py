"""Starts N Python processes that run a function of a test module, and leaves none behind.

    results = run_ranks(work, 2, tmp_path, 100)

runs ``work(100)`` in two processes. Each has RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its
environment, as under a launcher. What the function returns comes back as JSON.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore


@dataclass(frozen=True)
class Outcome:
    """How one process ended: exit code, what its function returned, and what it wrote."""

    code: int
    value: object
    output: str


def run_ranks(function, num_ranks, folder, *args, timeout_s=60.0):
    """Run ``function(*args)`` in ``num_ranks`` processes and return an Outcome per rank.

    Args:
        function: at the top level of a test module; its arguments and result must be JSON.
        num_ranks: processes to start.
        folder: an empty one, for results and output.
        args: arguments for every rank.
        timeout_s: after so long all of them are killed, and that is an error.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        store = TCPStore(
            "127.0.0.1",
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
            master_listen_fd=listener.detach(),
        )
    processes = [_start(function, rank, num_ranks, port, folder, args) for rank in range(num_ranks)]
    try:
        _wait_for_all(processes, timeout_s, folder)
    finally:
        for process in processes:
            _kill(process)
        del store
    return [_outcome(process, folder, rank) for rank, process in enumerate(processes)]


def _start(function, rank, num_ranks, port, folder, args):
    environment = dict(
        os.environ,
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
        OMP_NUM_THREADS="1",
        PYTHONPATH=os.pathsep.join(sys.path),
    )
    module = Path(sys.modules[function.__module__].__file__).resolve()
    command = [sys.executable, __file__, str(module), function.__name__]
    with (folder / f"output{rank}").open("wb") as output:
        return subprocess.Popen(
            [*command, str(folder / f"value{rank}"), json.dumps(args)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )


def _wait_for_all(processes, timeout_s, folder):
    for process in processes:
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            outputs = [p.read_text()[-2000:] for p in sorted(folder.glob("output*"))]
            message = "\n".join([f"not done within {timeout_s} s", *outputs])
            raise TimeoutError(message) from None


def _kill(process):
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.kill()
    process.wait(10)


def _outcome(process, folder, rank):
    value = folder / f"value{rank}"
    loaded = json.loads(value.read_text()) if value.exists() else None
    return Outcome(process.returncode, loaded, (folder / f"output{rank}").read_text())


def _main():
    module, function, result, args = sys.argv[1:]
    sys.path.insert(0, str(Path(module).parent))
    import torch

    torch.set_num_threads(1)
    try:
        value = getattr(importlib.import_module(Path(module).stem), function)(*json.loads(args))
        Path(result).write_text(json.dumps(value))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    _main()
