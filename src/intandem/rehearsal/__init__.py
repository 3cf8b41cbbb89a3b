"""Rehearsing: the real runtime and transports, with compute replaced by waits of known length."""

from intandem.rehearsal.rehearse import Part, Rehearsal, rehearse
from intandem.rehearsal.running import Progress, TransportKind

__all__ = ["Part", "Progress", "Rehearsal", "TransportKind", "rehearse"]
