"""Drive the model with what a trace says came from outside, and compare what it does."""
