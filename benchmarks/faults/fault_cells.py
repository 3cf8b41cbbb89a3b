"""Runs one cell of the fault table: a fault in a phase under a launcher, and what came of it."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

SCRIPT = Path(__file__).with_name("script.py")
SOURCE = Path(__file__).resolve().parents[2] / "src"
FAULTS = ("raise", "SIGKILL", "SIGSTOP", "os._exit(0)", "hang")
PHASES = ("forward", "backward", "optimizer", "checkpoint", "shutdown")
LAUNCHERS = ("intandem run", "torchrun", "threads")
HANG_S = 0.5
"""Limit of an action; ten times as long for a checkpoint and between steps."""

TORCHRUNS_OWN = "torchelastic_"
"""What torchrun leaves behind of every run that fails: the folder of its logs, empty."""

LIMIT_S = 90.0
LEFT_S = 3.0
"""Seconds after which nothing may be left, on a machine that does nothing else."""


class Cell(NamedTuple):
    """A fault, when, and how ranks are started."""

    fault: str
    phase: str
    launcher: str
    ranks: int

    @property
    def culprit(self) -> int:
        """The last rank: of 3 ranks, one survivor is its neighbour and one is not."""
        return self.ranks - 1


@dataclass(slots=True)
class Found:
    """What came of a cell.

    Attributes:
        fault, phase, launcher, ranks: of the cell.
        named_s: seconds from the fault until each survivor had the error that names the culprit.
        num_unnamed: survivors that had no error.
        num_wrong: survivors whose error names another rank first.
        errors: first line of each survivor's error.
        code: exit code of the launcher.
        gone_s: seconds from the fault until no process of the run was left.
        num_processes: left ``left_s`` after the last survivor had its error.
        num_ports: of those that the run listened on, still open then.
        num_files: left in the directory for temporary files, torchrun's own left out.
        exposed: addresses other than loopback that ranks, or our launcher, listened on.
        exposed_by_torchrun: the same of torchrun's own process.
        text: what was printed.
    """

    fault: str
    phase: str
    launcher: str
    ranks: int
    named_s: list[float] = field(default_factory=list)
    num_unnamed: int = 0
    num_wrong: int = 0
    errors: list[str] = field(default_factory=list)
    code: int | None = None
    gone_s: float = float("nan")
    num_processes: int = 0
    num_ports: int = 0
    num_files: int = 0
    exposed: list[str] = field(default_factory=list)
    exposed_by_torchrun: list[str] = field(default_factory=list)
    text: str = ""

    @property
    def cell(self) -> Cell:
        """Which cell it is of."""
        return Cell(self.fault, self.phase, self.launcher, self.ranks)

    def as_json(self) -> dict[str, object]:
        """Everything but what was printed."""
        kept = asdict(self)
        del kept["text"]
        return kept


def cells(ranks: tuple[int, ...]) -> list[Cell]:
    """Every cell that makes sense: threads die with their process, and save in the caller's."""
    with_threads = {"raise", "hang"}, {"forward", "backward", "optimizer"}
    return [
        Cell(fault, phase, launcher, count)
        for count in ranks
        for launcher in LAUNCHERS
        for phase in PHASES
        for fault in FAULTS
        if launcher != "threads" or (fault in with_threads[0] and phase in with_threads[1])
    ]


def run_cell(cell: Cell, left_s: float = LEFT_S) -> Found:
    """Run a cell and see what is left ``left_s`` after every survivor had its error."""
    with tempfile.TemporaryDirectory(prefix="intandem-faults-") as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        found = Found(*cell)
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                _command(cell, folder), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=_environment(folder), cwd=folder, start_new_session=True,
            )  # fmt: skip
            try:
                _watch(process, folder, found, left_s)
            finally:
                process.kill()
                process.wait()
        found.code = process.returncode
        left = [path.name for path in (folder / "tmp").iterdir()]
        found.num_files = sum(not name.startswith(TORCHRUNS_OWN) for name in left)
        found.text = (folder / "output").read_text("utf-8", errors="replace")
        _read_told(cell, folder, found)
        return found


def _command(cell: Cell, folder: Path) -> list[str]:
    start = {
        "intandem run": ["-m", "intandem", "run", "--ranks", str(cell.ranks)],
        "torchrun": [
            "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(cell.ranks),
        ],
        "threads": [],
    }[cell.launcher]  # fmt: skip
    words = [folder, cell.fault, cell.phase, cell.culprit, cell.ranks, HANG_S]
    return [sys.executable, *start, str(SCRIPT), *map(str, words)]


def _environment(folder: Path) -> dict[str, str]:
    dropped = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    path = os.pathsep.join([str(SOURCE), kept.get("PYTHONPATH", "")])
    own = {"TMPDIR": str(folder / "tmp"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    return {**kept, **own, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def _watch(process: subprocess.Popen[bytes], folder: Path, found: Found, left_s: float) -> None:
    """Look at the run until it is gone; note what it listens on, and what is left of it."""
    began_s, ports, looked_s = time.monotonic(), set[int](), 0.0
    while True:
        now_s, fault_s = time.monotonic(), _read_ns(folder / "fault")
        told_s = _told_s(folder, found.cell)
        alive = _processes(folder)
        if process.poll() is not None and not alive:
            found.gone_s = now_s - fault_s
            break
        if now_s - looked_s > 1.0:
            looked_s = now_s
            for pid, is_torchrun in alive.items():
                for address, port in listening(pid):
                    ports.add(port)
                    kept = found.exposed_by_torchrun if is_torchrun else found.exposed
                    if not _is_loopback(address) and address not in kept:
                        kept.append(address)
        if (told_s is not None and now_s > told_s + left_s) or now_s > began_s + LIMIT_S:
            found.num_processes = len(alive)
            break
        time.sleep(0.02)
    found.num_ports = len(ports & {port for _, port in listening(None)})
    for pid in _processes(folder):
        os.kill(pid, 9)


def _told_s(folder: Path, cell: Cell) -> float | None:
    """When the last survivor had its error, or None while one has not."""
    times = [_read_told_of(folder, rank) for rank in survivors(cell)]
    known = [ns / 1e9 for ns, _ in times if ns]
    return max(known) if len(known) == len(times) else None


def survivors(cell: Cell) -> list[int]:
    """Those that are to have the error; -1 is the caller of threads."""
    return (
        [-1] if cell.launcher == "threads" else [r for r in range(cell.ranks) if r != cell.culprit]
    )


def _read_told_of(folder: Path, rank: int) -> tuple[int, str]:
    try:
        told = json.loads((folder / f"told-{rank}.json").read_text())
    except (OSError, ValueError):  # not there, or being written
        return 0, ""
    return told["ns"], told["error"]


def _read_told(cell: Cell, folder: Path, found: Found) -> None:
    fault_s = _read_ns(folder / "fault")
    for rank in survivors(cell):
        ns, error = _read_told_of(folder, rank)
        if not ns:
            found.num_unnamed += 1
            continue
        found.named_s.append(ns / 1e9 - fault_s)
        found.errors.append(error.partition("\n")[0])
        named = re.search(r"\brank (\d+)\b", error)
        is_own = cell.launcher == "threads" and error == "ValueError: boom"  # it is the caller's
        found.num_wrong += not is_own and (named is None or int(named[1]) != cell.culprit)


def _read_ns(path: Path) -> float:
    try:
        return int(path.read_text()) / 1e9
    except (OSError, ValueError):
        return float("nan")


def _processes(folder: Path) -> dict[int, bool]:
    """Living processes of the run, and whether each is torchrun's own."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes()
            is_dead = (path / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            continue
        if str(folder).encode() in line and not is_dead:
            found[int(path.name)] = b"torch.distributed.run" in line
    return found


def listening(pid: int | None) -> set[tuple[str, int]]:
    """Addresses and ports that a process listens on; of all processes for None."""
    inodes = None if pid is None else _sockets_of(pid)
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and (inodes is None or words[9] in inodes):
                address, _, port = words[1].partition(":")
                found.add((_address(address), int(port, 16)))
    return found


def _sockets_of(pid: int) -> set[str]:
    try:
        links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return set()
    return {m[1] for link in links if (m := re.match(r"socket:\[(\d+)\]", link))}


def _address(text: str) -> str:
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    found = ipaddress.ip_address(b"".join(words))
    return str(getattr(found, "ipv4_mapped", None) or found)


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback
