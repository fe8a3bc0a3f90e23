"""Recording a live kernel: what to enable, and a private tracefs instance to do so in."""
