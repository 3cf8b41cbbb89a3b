from intandem.pipeline.facade import Pipeline
from intandem.pipeline.request import Options

__all__ = ["Options", "Pipeline"]
