from intandem.simulator.bounds import lower_bound_s
from intandem.simulator.memory import activations, peak_activations
from intandem.simulator.simulation import simulate

__all__ = ["activations", "lower_bound_s", "peak_activations", "simulate"]
