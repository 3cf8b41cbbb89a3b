"""The health of a run in its store: one verdict, one beat per rank.

All keys are below ``intandem/health/`` of the run's own store, whatever prefixes the store that was
handed in has, so that the launcher and every process of the run find the same ones. Ranks are
global ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.distributed as dist

from intandem.runtime.verdict import Beat, Verdict, decode_beat, decode_verdict, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_VERDICT = "verdict"
_SUPERVISED = "supervised"
_STOPPED_BY = "stopped_by"
_NUM_TOLD = "num_told"


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look at the board shows.

    Attributes:
        verdict: of the run, or None while it is healthy.
        beats: by rank, of those that have beaten yet.
    """

    verdict: Verdict | None
    beats: Mapping[int, Beat]


class Board:
    """Reads and writes the health of a run. Thread-safe; every call is one round trip."""

    def __init__(self, store: dist.Store, attempt: int = 0) -> None:
        """Use a connection of its own to ``store``, so that nobody's waiting gets in the way.

        Args:
            store: of the run.
            attempt: how often the run has been restarted: an earlier verdict counts no more.
        """
        while isinstance(store, dist.PrefixStore):
            store = store.underlying_store
        copy = store.clone()  # type: ignore[attr-defined]
        self._store = dist.PrefixStore(f"intandem/health/{attempt}", copy)
        self._made: set[str] = set()

    def look(self, ranks: Iterable[int]) -> Sight:
        """Read the verdict and the beats of ``ranks``.

        Raises:
            RuntimeError: if the store is gone; so do the other methods.
        """
        watched = tuple(ranks)
        keys = [_VERDICT, *map(_beat_key, watched)]
        self._make(keys)
        verdict, *beats = self._store.multi_get(keys)
        return Sight(
            decode_verdict(verdict) if verdict else None,
            {rank: decode_beat(text) for rank, text in zip(watched, beats, strict=True) if text},
        )

    def accuse(self, verdict: Verdict) -> Verdict:
        """Publish ``verdict`` unless there is one, and return the one that counts."""
        return decode_verdict(self._store.compare_set(_VERDICT, "", encode(verdict)))

    def beat(self, rank: int, beat: Beat) -> None:
        """Say how ``rank`` is."""
        self._store.set(_beat_key(rank), encode(beat))

    def supervise(self) -> None:
        """Say that a launcher of ours reports every death itself."""
        self._store.set(_SUPERVISED, "yes")

    def is_supervised(self) -> bool:
        """Whether a launcher of ours reports every death."""
        return self._store.check([_SUPERVISED])

    def stop(self, name: str) -> None:
        """Say that the launcher tells every rank to end, by the signal called ``name``."""
        self._store.set(_STOPPED_BY, name)

    def stopped_by(self) -> str:
        """The signal by which the launcher tells every rank to end, or nothing."""
        return self._store.get(_STOPPED_BY).decode() if self._store.check([_STOPPED_BY]) else ""

    def count_told(self, more: int) -> int:
        """Count ``more`` ranks that were told to end; return how many there are."""
        return self._store.add(_NUM_TOLD, more)

    def _make(self, keys: Iterable[str]) -> None:
        """Let every key exist, empty: reading one that does not would wait for it."""
        for key in keys:
            if key not in self._made:
                self._store.compare_set(key, "", "")
                self._made.add(key)


def _beat_key(rank: int) -> str:
    return f"beat/{rank}"
