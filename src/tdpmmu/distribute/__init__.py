"""Running many tasks on all cores, or on many machines, with the same results in the same order."""
