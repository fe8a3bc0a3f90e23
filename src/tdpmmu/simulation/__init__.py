"""What a knob costs a guest: workloads, files, sweeps and pictures around ``worlds.simulate``."""
