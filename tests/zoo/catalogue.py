"""The zoo: every architecture we say something about, with a small random model of it.

A family file (``decoders.py``, ``vision.py``, ...) holds functions under ``@animal``, each of which
builds a ``Sample``: a model as its library makes it, a batch of ROWS rows, a loss or None. What
does not work stays in the list, with its reason and what a user can do.
"""

import importlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

FAMILIES = (
    "decoders",
    "experts",
    "state_space",
    "encoders",
    "encoder_decoders",
    "vision",
    "dense_vision",
    "audio",
    "vision_language",
    "vision_decoders",
    "diffusion",
    "timm_models",
    "timm_convolutions",
    "plain",
    "plain_arguments",
    "plain_weights",
    "plain_sequences",
)
"""Files of this folder with entries, in the order of the table."""

ROWS = 5
MICROBATCHES = 2


class Sample(NamedTuple):
    """What ``check`` takes first."""

    model: nn.Module
    batch: Any
    loss: Any = None


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        name: of the architecture, as its users call it.
        family: file it is in.
        library: that it comes from, by the name it is imported by.
        build: returns its ``Sample``, in float64 and training mode, the same one each time.
        options: arguments of ``Pipeline`` that it needs (``split``, ``count``, ``inputs``), which a
            user would have to give as well.
        refused: None; or a part of the message with which it is refused.
        remedy: for what is refused: what a user can do.
    """

    name: str
    family: str
    library: str
    build: Any
    options: dict
    refused: str | None
    remedy: str | None


ENTRIES: dict[str, Entry] = {}
"""Every entry by name, once ``entries`` has been called."""


def animal(name, *, library="transformers", options=None, refused=None, remedy=None):
    """Enter a function that builds a model in the zoo. It is called with torch seeded."""

    def enter(function):
        def build():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(20)
                made = Sample(*function())
            return made._replace(model=made.model.double().train())

        family = function.__module__.rpartition(".")[2]
        if name in ENTRIES and ENTRIES[name].family != family:
            msg = f"two entries of the zoo are called {name}"
            raise ValueError(msg)
        ENTRIES[name] = Entry(name, family, library, build, options or {}, refused, remedy)
        return function

    return enter


def entries():
    """Return every entry, in the order of the table."""
    for family in FAMILIES:
        importlib.import_module(f"zoo.{family}")
    order = {family: place for place, family in enumerate(FAMILIES)}
    return sorted(ENTRIES.values(), key=lambda entry: order[entry.family])
