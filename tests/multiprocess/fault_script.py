"""A training loop in miniature: every micro-batch passes through all ranks in order.

Run as a rank: ``fault_script.py FAULT TOKEN [CULPRIT]``. Rank CULPRIT (1) does FAULT at step 5,
micro-batch 2; with ``forever``, steps go on. Each transfer is done by a helper thread while the
main thread looks at the watch, as transports do.
"""

import datetime
import os
import queue
import re
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from intandem.runtime.distributed_watch import DistributedWatch
from intandem.runtime.suspicion import Limits
from intandem.runtime.watch import BETWEEN_STEPS, Position

CULPRIT = int(sys.argv[3]) if len(sys.argv) > 3 else 1
STEP, MICROBATCH = 5, 2
NUM_STEPS = 100_000 if sys.argv[1] == "forever" else 12
NUM_MICROBATCHES = 4


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def die(fault):
    match fault:
        case "raise" | "swallow" | "outside":
            msg = "boom"
            raise ValueError(msg)
        case "sys.exit(0)":
            sys.exit(0)
        case "sys.exit(3)":
            sys.exit(3)
        case "os._exit(0)":
            os._exit(0)
        case "os._exit(3)":
            os._exit(3)
        case "SIGKILL" | "SIGTERM" | "SIGSTOP" | "SIGSEGV":
            os.kill(os.getpid(), getattr(signal, fault))
            time.sleep(60)
        case "hang":
            threading.Event().wait()
        case "gil":
            re.match(r"(a?){40}a{40}", "a" * 40)


class Wire:
    """Transfers in a helper thread, so that the main thread never blocks in Gloo."""

    def __init__(self, watch):
        self.watch = watch
        self.jobs, self.done = queue.SimpleQueue(), queue.SimpleQueue()
        threading.Thread(target=self.work, daemon=True).start()

    def work(self):
        while True:
            job = self.jobs.get()
            try:
                self.done.put((job(), None))
            except RuntimeError as error:
                self.done.put((None, error))

    def do(self, job):
        self.jobs.put(job)
        while True:
            self.watch.check()
            try:
                _, error = self.done.get(timeout=0.02)
            except queue.Empty:
                continue
            if error is not None:
                self.watch.fail(error)
                self.watch.check()
                raise error
            return


def microbatch(watch, wire, step, index, fault):
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    slot = 3 * index
    x = torch.ones(8)
    if rank > 0:
        doing = f"recv:{rank - 1}F{index}>{rank}@{rank - 1}"
        watch.at(Position(step, slot, rank, index, doing))
        wire.do(lambda: dist.recv(x, rank - 1))
    watch.at(Position(step, slot + 1, rank, index, f"{rank}F{index}"))
    if (rank, step, index) == (CULPRIT, STEP, MICROBATCH):
        say(f"FAULT {time.time()}")
        try:
            die(fault)
        except ValueError as error:
            if fault != "outside":
                watch.fail(error)
            raise
    time.sleep(0.005)
    if rank < num_ranks - 1:
        doing = f"send:{rank}F{index}>{rank + 1}@{rank + 1}"
        watch.at(Position(step, slot + 2, rank, index, doing))
        wire.do(lambda: dist.send(x, rank + 1))


def main(fault):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    limits = Limits(hang_s=1.0)
    watch = DistributedWatch(
        _get_default_store(), dist.get_rank(), dist.get_world_size(), limits=limits
    )
    wire = Wire(watch)
    dist.barrier()
    time.sleep(0.5)  # ranks map each other's positions within a beat of joining
    say(f"at work: rank {dist.get_rank()}")
    for step in range(NUM_STEPS):
        for index in range(NUM_MICROBATCHES):
            try:
                microbatch(watch, wire, step, index, fault)
            except Exception as error:
                if fault != "swallow":
                    raise
                say(f"swallowed {type(error).__name__}")
    watch.begin(BETWEEN_STEPS)
    dist.barrier()
    if fault == "none" and dist.get_rank() == dist.get_world_size() - 1:
        time.sleep(2)  # ranks of a healthy run end at different times
    say(f"finished rank {dist.get_rank()}")


if __name__ == "__main__":
    main(sys.argv[1])
