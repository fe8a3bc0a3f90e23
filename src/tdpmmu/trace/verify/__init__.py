"""Hold a trace of a real kernel against the rules."""
