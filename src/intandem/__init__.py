"""Pipeline-parallel training for any nn.Module, with the numbers of one process."""
