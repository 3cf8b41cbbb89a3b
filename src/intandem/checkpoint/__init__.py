from intandem.checkpoint.folder import CheckpointFolder
from intandem.checkpoint.loading import CheckpointState, load_into, read_state

__all__ = ["CheckpointFolder", "CheckpointState", "load_into", "read_state"]
