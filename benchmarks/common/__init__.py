"""What benchmarks share: turns, ratios, processes, tables, plots, and how results are kept."""
