"""The environment of a rank: the one place that knows torch.distributed's own variables."""

from __future__ import annotations

import os

HOST = "127.0.0.1"


def rank_environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """This process's environment, with what ``env://`` rendezvous needs of ``rank``.

    The store at ``port`` is the launcher's: ranks join it as clients, as under ``torchrun``.
    Transfers stay on the loopback interface. A number of threads that the user set is kept.

    GPUs: receives are kernels that run until their message is there, each on a stream of its own.
    With as many queues as there are streams none is behind another, and what is loaded at the
    beginning need not be loaded while one of them runs.
    """
    threads = max(1, (os.cpu_count() or 1) // num_ranks)
    defaults = {
        "OMP_NUM_THREADS": str(threads),
        "CUDA_DEVICE_MAX_CONNECTIONS": "32",
        "CUDA_MODULE_LOADING": "EAGER",
    }
    return {
        **defaults,
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "GROUP_RANK": "0",
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": str(True),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        "PYTHONUNBUFFERED": "1",
    }
