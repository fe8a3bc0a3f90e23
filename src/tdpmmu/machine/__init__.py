"""Cells, operations and threads: what another CPU can see, and nothing else."""
