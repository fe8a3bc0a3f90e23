"""The simulating world: an operation costs virtual time, waiting is queueing."""
