from intandem.partition.min_max import Partition, partition_blocks

__all__ = ["Partition", "partition_blocks"]
