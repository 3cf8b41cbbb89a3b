"""The configuration of a training run, as values. What a key means is told by its docstring.

Whatever has a default other than None cannot be None, so that leaving a key out of a file and
writing a configuration down are exact opposites.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta
from tyro.conf import Suppress

Count = Annotated[int, Meta(ge=1)]
CountOrZero = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Precision = Literal["fp32", "bf16", "fp16"]
Arguments = Annotated[dict[str, Any] | None, Suppress]
"""What a function of the user's is called with; not on the command line."""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What is trained on."""

    source: str = "stdlib"
    """`text:PATH`: a file, or the files of a folder; `stdlib`: the sources of Python's standard
    library, which are text that every machine has; `images:digits`: scikit-learn's 8 x 8 digits
    (extra `images`); `module:function` or `file.py:function`: your own."""
    files: str = "**/*"
    """Which files of a folder are read, as a pattern; hidden ones are not."""
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    """How text becomes numbers: a byte each, or byte pairs learned from the text (extra `text`),
    which are kept in the run's directory."""
    vocab: Annotated[int, Meta(ge=257)] = 4096
    """Tokens that `bpe` learns, the 256 bytes included."""
    seq: Count = 128
    """Tokens that a row of text holds."""
    rows: Count = 16
    """Rows of a batch: of all micro-batches together."""
    validation: Share = 0.05
    """Share that is held out: whole files of a folder, the end of a single file, every so many
    images. With 0, nothing is."""
    arguments: Arguments = None
    """What your own function is called with, by name."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What is trained."""

    name: str = "gpt"
    """`gpt`, `vit`, or `module:function` or `file.py:function`: your own."""
    width: Count = 192
    """Of the residual stream."""
    blocks: Count = 4
    """Transformer blocks."""
    heads: Count = 6
    """Attention heads of a block; they share out the width."""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Probability of dropping an element of what a block adds."""
    tied: bool = True
    """Whether the head of `gpt` uses the token embedding's weight."""
    patch: Count = 2
    """Side of the squares that `vit` cuts images into, in pixels."""
    loss: str | None = None
    """`module:function` of the loss, called with the output and the batch; by default the data's
    own, or the `loss` of the model's output where the data has none."""
    arguments: Arguments = None
    """What your own function is called with, by name; `data=` is added if it takes that."""


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """Parameters with options of their own; of several groups the first that matches counts."""

    match: tuple[str, ...]
    """Patterns of parameters' names, such as `*.bias`; one of them has to match."""
    weight_decay: NotNegative | None = None
    """Instead of the optimizer's."""
    lr_scale: NotNegative = 1.0
    """What the learning rate is multiplied by."""


NO_DECAY = (GroupConfig(match=("*bias", "*norm*"), weight_decay=0.0),)


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """What changes the parameters."""

    name: str = "adamw"
    """`adamw`, `sgd`, or `module:function` or `file.py:function`, which is called with the
    parameter groups, `lr=` and `arguments`."""
    lr: NotNegative = 1e-3
    """Peak learning rate."""
    weight_decay: NotNegative = 0.1
    """Of parameters that no group has another one for."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """Of `adamw`."""
    eps: Positive = 1e-8
    """Of `adamw`."""
    momentum: Share = 0.0
    """Of `sgd`."""
    groups: Annotated[tuple[GroupConfig, ...], Suppress] = NO_DECAY
    """Parameters with options of their own; by default, norms and biases do not decay."""
    arguments: Arguments = None
    """What your own function is called with besides, by name."""


@dataclass(frozen=True, slots=True)
class LearningRateConfig:
    """How the learning rate changes; it depends on the step alone."""

    shape: Literal["constant", "linear", "cosine"] = "cosine"
    """What it does after the warm-up."""
    warmup: CountOrZero = 20
    """Steps in which it rises to its peak, in a line."""
    final: Share = 0.1
    """What is left of the peak at the last step; not of `constant`."""


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """How it is run in stages; docs/training.md tells more."""

    ranks: Count | None = None
    """Stages that work at the same time. Under a launcher: the processes that it starts."""
    schedule: str = "auto"
    """A name (`intandem show all` compares them) or the path of a compute-order .csv."""
    microbatches: Count | None = None
    """Parts that a batch is split into; by default 4 per rank, and what it was of a run that is
    gone on with."""
    replicas: Count = 1
    """Copies of the pipeline that share out the micro-batches."""
    recompute: Literal["none", "all"] = "none"
    """With `all`, forwards are run again in backward, to keep only what stages are given."""
    split_points: tuple[str, ...] | None = None
    """The module that each stage after the first begins with; by default they are balanced."""
    device: str | None = None
    """`cpu`, `cuda`, `cuda:1`; by default CUDA where there is any."""
    threads_per_rank: Count | None = None
    """Torch's threads of each rank; by default the cores shared out. Fix it to get the same bits
    with other numbers of ranks."""
    timeout_s: Positive = 300.0
    """How long processes may take to find each other, in seconds."""
    hang_s: Positive = 30.0
    """How long an action may take at least before its rank is taken to hang, in seconds; 5 times
    the longest that was seen, where that is more. With `inf`, never. docs/faults.md tells more."""
    open_blocks: bool = False
    """Whether a block beside an uneven cut may be cut inside."""


@dataclass(frozen=True, slots=True)
class ValidationConfig:
    """The loss on what is held out."""

    every: CountOrZero = 100
    """Steps from one validation to the next; one more follows the last step. With 0, none."""
    batches: Count = 8
    """Batches of `data.rows` that it is taken over, the same ones each time."""


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """What a run goes on from."""

    every: CountOrZero = 100
    """Steps from one checkpoint to the next; one more follows the last step. With 0, none."""
    keep: Count = 3
    """How many are kept: the newest."""


@dataclass(frozen=True, slots=True)
class LoggingConfig:
    """Where numbers go besides metrics.jsonl."""

    every: Count = 1
    """Steps from one line of metrics to the next."""
    tensorboard: bool = False
    """Whether TensorBoard gets them too, in the run's directory (extra `tensorboard`)."""
    loggers: Annotated[tuple[str, ...], Suppress] = ()
    """`module:function`s that are called with the run's directory and return something with
    `log(numbers, step)`, and `close()` if it likes."""


@dataclass(frozen=True, slots=True)
class Config:
    """A training run."""

    directory: str = "runs/train"
    """Where everything of the run goes, and what `--resume` goes on from."""
    steps: Count = 1000
    """Updates of the parameters."""
    seed: CountOrZero = 0
    """Of initial weights, of the order of the data, of what is held out, of dropout."""
    accumulate: Count = 1
    """Batches whose gradients are averaged for an update."""
    clip: NotNegative = 1.0
    """Most that the norm of all gradients may be; with 0, they are left as they are."""
    precision: Precision = "fp32"
    """`bf16` and `fp16` compute in mixed precision; `fp16` scales the loss."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    learning_rate: LearningRateConfig = field(default_factory=LearningRateConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
