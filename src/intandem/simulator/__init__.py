from intandem.simulator.bounds import Allowed, lower_bound_s
from intandem.simulator.critical_path import critical_path
from intandem.simulator.figures import Figures, simulate_figures
from intandem.simulator.idle import idle_parts
from intandem.simulator.memory import activations, peak_activations
from intandem.simulator.memory_bytes import MemoryUse, memory_over_time, peak_bytes
from intandem.simulator.simulation import simulate
from intandem.simulator.steps import StepSequence, simulate_steps
from intandem.simulator.streaming import simulate_codes

__all__ = [
    "Allowed",
    "Figures",
    "MemoryUse",
    "StepSequence",
    "activations",
    "critical_path",
    "idle_parts",
    "lower_bound_s",
    "memory_over_time",
    "peak_activations",
    "peak_bytes",
    "simulate",
    "simulate_codes",
    "simulate_figures",
    "simulate_steps",
]
