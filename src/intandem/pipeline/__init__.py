from intandem.pipeline.facade import Pipeline
from intandem.pipeline.options import Options

__all__ = ["Options", "Pipeline"]
