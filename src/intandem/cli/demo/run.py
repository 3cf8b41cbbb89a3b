"""The demo from its first line to its report."""

from __future__ import annotations

import copy
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from intandem.cli.demo.model import Sizes, build_gpt, loss_fn
from intandem.cli.demo.outcome import Outcome
from intandem.cli.demo.text import load_text
from intandem.cli.demo.training import Budget, Data, Log, OneProcess, adamw, heldout_loss, train
from intandem.cli.progress import reporting
from intandem.equality import check
from intandem.pipeline import Options, Pipeline
from intandem.views.html import report_html
from intandem.views.report import LossCurve, Throughput

if TYPE_CHECKING:
    from torch import nn

    from intandem.cli.cmd_demo import Arguments
    from intandem.views.report import Report

NUM_FINAL_BATCHES = 24
"""Held-out batches that the loss at the end is taken over."""


def run(arguments: Arguments) -> Outcome:
    """Do what ``arguments`` ask for, write the report, and return what was found."""
    console = Console(stderr=arguments.format == "json", highlight=False)
    torch.set_num_threads(1)
    data = Data(load_text(arguments.seed), Sizes(), arguments.seed)
    model = build_gpt(data.sizes, tied=arguments.tied, seed=arguments.seed)
    _introduce(console, arguments, data, model)
    error = _gradient_error(arguments, data, model)
    outcome = Outcome(
        schedule=arguments.schedule,
        num_ranks=arguments.ranks,
        num_microbatches=arguments.microbatches,
        num_parameters=_num_parameters(model),
        byte_entropy=data.text.entropy,
        max_gradient_error=error,
        report=str(arguments.report),
    )
    console.print(outcome.gradient_line, soft_wrap=True)
    outcome, report = _train(arguments, data, model, console, outcome)
    arguments.report.write_text(report_html(report), encoding="utf-8")
    return outcome


def _introduce(console: Console, arguments: Arguments, data: Data, model: nn.Module) -> None:
    text = data.text
    millions = (len(text.training) + len(text.heldout)) / 1e6
    lines = (
        f"GPT: {data.sizes.num_blocks} blocks, {_num_parameters(model) / 1e6:.2f} M parameters, "
        f"on {arguments.ranks} ranks: {arguments.schedule}, {arguments.microbatches} micro-batches",
        f"trained on {millions:.1f} MB of Python sources from {text.folder}",
        f"of {text.num_files} files 1 in 20 is held out; byte entropy {text.entropy:.3f} nats",
    )
    for line in lines:
        console.print(line, soft_wrap=True)


def _gradient_error(arguments: Arguments, data: Data, model: nn.Module) -> float:
    """Largest relative error of a parameter's gradient against plain PyTorch, in float64."""
    equality = check(
        copy.deepcopy(model).double(),
        data.training(0),
        loss_fn,
        ranks=arguments.ranks,
        schedule=arguments.schedule,
        microbatches=arguments.microbatches,
    )
    return equality.max_gradient_error


def _train(
    arguments: Arguments, data: Data, model: nn.Module, console: Console, outcome: Outcome
) -> tuple[Outcome, Report]:
    plain = copy.deepcopy(model)
    one = OneProcess(plain, adamw(plain.parameters()), arguments.microbatches)
    budget = Budget(arguments.steps, arguments.seconds)
    with Pipeline(
        model,
        example=data.training(0),
        loss=loss_fn,
        ranks=arguments.ranks,
        schedule=arguments.schedule,
        microbatches=arguments.microbatches,
        options=Options(seed=arguments.seed),
    ) as pipe:
        with reporting(console) as reporter:
            log = train(pipe, one, data, budget, reporter)
        final = heldout_loss(pipe, data, num_batches=NUM_FINAL_BATCHES)
        report = log.typical() or pipe.report_value()
    log.heldout.append((len(log.training) - 1, final))
    outcome = _completed(outcome, log, data, report)
    return outcome, _with_training(report, log, data, outcome)


def _completed(outcome: Outcome, log: Log, data: Data, drawn: Report) -> Outcome:
    return replace(
        outcome,
        num_steps=len(log.training),
        training_s=log.elapsed_s,
        training_loss=log.training[-1][1],
        heldout_loss=log.heldout[-1][1],
        step_s=median(log.step_s),
        tokens_per_s=data.sizes.tokens / median(log.step_s),
        speed_ratio=median(log.speed_ratios) if log.speed_ratios else None,
        makespan_s=drawn.measured.makespan_s if drawn.measured else None,
        bubble_ratio=drawn.measured.bubble_ratio if drawn.measured else None,
        planned_bubble_ratio=drawn.planned.bubble_ratio if drawn.planned else None,
    )


def _with_training(report: Report, log: Log, data: Data, outcome: Outcome) -> Report:
    """Add what the training knows to what the pipeline knows of one step."""
    rates = tuple((step, data.sizes.tokens / s) for step, s in enumerate(log.step_s))
    return replace(
        report,
        title=f"intandem demo: GPT, {outcome.num_parameters / 1e6:.2f} M parameters",
        loss=LossCurve(
            training=tuple(log.training),
            heldout=tuple(log.heldout),
            unit="nats per byte",
            reference=outcome.byte_entropy,
            reference_name="byte entropy",
        ),
        throughput=Throughput(rates, "tokens"),
        step_s=outcome.step_s,
        speed_ratio=outcome.speed_ratio,
        gradient_equality=outcome.gradient_line,
        gradients_equal=outcome.gradients_equal,
        environment=(
            *report.environment,
            ("text", str(data.text.folder)),
            ("step drawn", f"of median makespan among {max(len(log.snapshots), 1)}"),
        ),
    )


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
