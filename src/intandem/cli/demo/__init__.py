"""The parts of ``intandem demo``: text, model, measurements, training, progress."""
