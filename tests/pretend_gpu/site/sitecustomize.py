"""Python imports this by itself where its folder is on PYTHONPATH: every process has pretend GPUs.

The library must be there before torch is imported, as torch asks once whether there is CUDA.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
import pretend_gpu

pretend_gpu.install()
