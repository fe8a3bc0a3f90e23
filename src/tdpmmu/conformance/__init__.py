"""The real kernel as the referee: the model is held against what a kernel has traced."""
