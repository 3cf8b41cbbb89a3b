from intandem.simulator.bounds import lower_bound_s
from intandem.simulator.engine import simulate
from intandem.simulator.memory import activations, peak_activations

__all__ = ["activations", "lower_bound_s", "peak_activations", "simulate"]
