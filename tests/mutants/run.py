"""Breaks the library in small ways and runs, for each, the test that must notice.

A mutant is a ``*.patch`` file next to this one: a header line ``# test: <pytest id>``, then a
unified diff. It is applied to a copy of the tree. It is *caught* if the test fails with an
assertion or an error of the library's own, or with Python's that a header line ``# error: <class>``
names; it *survives* if the test passes. Anything else, such as a patch that does not apply or a
test that cannot be collected, is *broken*.

A header line ``# needs: gpu`` has the test run on pretend GPUs.

    python tests/mutants/run.py            all of them
    python tests/mutants/run.py tied norm  those with one of these words in their names
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
COPIED = ("src", "tests", "examples", "pyproject.toml")
NUM_PARALLEL = 2
LIMIT_S = 180
OWN_ERRORS = re.compile(
    r"^FAILED .* - (assert |AssertionError|Failed: |intandem\.errors\.|\w+\.errors\.|TimeoutError)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant."""

    name: str
    outcome: str
    detail: str


def main(words):
    """Run the mutants and return the exit status: 0 if every one of them is caught."""
    patches = [p for p in sorted(HERE.glob("*.patch")) if any(w in p.stem for w in words or [""])]
    with ThreadPoolExecutor(NUM_PARALLEL) as pool:
        verdicts = []
        for verdict in pool.map(judge, patches):
            verdicts.append(verdict)
            show(f"{verdict.outcome:9} {verdict.name:34} {verdict.detail}")
    bad = [verdict for verdict in verdicts if verdict.outcome != "caught"]
    show(f"{len(verdicts) - len(bad)} of {len(verdicts)} mutants caught")
    return 1 if bad or not verdicts else 0


def judge(patch):
    """Apply one patch to a copy of the tree and run its test there."""
    text = patch.read_text()
    test = re.search(r"^# test: (\S.*)$", text, re.MULTILINE)
    error = re.search(r"^# error: (\S+)$", text, re.MULTILINE)
    on_gpu = re.search("^# needs: gpu$", text, re.MULTILINE) is not None
    if test is None:
        return Verdict(patch.stem, "broken", "no header line '# test: <pytest id>'")
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy_tree(Path(folder))
        applied = run(["git", "apply", "--whitespace=nowarn", str(patch)], folder)
        if applied.returncode:
            return Verdict(patch.stem, "broken", f"does not apply: {applied.stderr.strip()}")
        try:
            done = run_test(test[1], folder, on_gpu=on_gpu)
            return verdict_of(patch.stem, test[1], done, error and error[1])
        except subprocess.TimeoutExpired:
            return Verdict(patch.stem, "broken", f"{test[1]} took more than {LIMIT_S} s")


def copy_tree(folder):
    """Copy what tests need."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def run_test(test, folder, *, on_gpu):
    """Run one test on the copy."""
    options = ["-q", "-rfE", "--tb=line", "-p", "no:cacheprovider"]
    more = [Path(folder) / "tests/pretend_gpu/site"] if on_gpu else []
    return run([sys.executable, "-m", "pytest", *options, test], folder, more)


def verdict_of(name, test, done, error):
    """Read pytest's report; ``error`` is what the test may fail with besides, or None."""
    if done.returncode == 0:
        return Verdict(name, "SURVIVED", test)
    is_foretold = error is not None and f" - {error}: " in done.stdout
    if done.returncode == 1 and (is_foretold or OWN_ERRORS.search(done.stdout)):
        return Verdict(name, "caught", test)
    return Verdict(name, "broken", f"{test}\n{done.stdout[-1500:]}{done.stderr[-500:]}")


def run(command, folder, more=()):
    """Run a command in the copy, with the copy's library, and more to import from."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [Path(folder) / "src", *more])),
        "GIT_CEILING_DIRECTORIES": str(Path(folder).parent),
        "COLUMNS": "400",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def show(line):
    """Print one line now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
