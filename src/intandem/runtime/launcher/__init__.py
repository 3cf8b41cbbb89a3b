"""Starts a script on several local processes and ends them together."""

from intandem.runtime.launcher.launch import MAX_RANKS, Outcome, Show, launch, launch_command

__all__ = ["MAX_RANKS", "Outcome", "Show", "launch", "launch_command"]
