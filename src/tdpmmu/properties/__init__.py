"""Properties: what must hold of any run, told by the events alone."""
