"""What can be observed of an MMU, in the kernel's words."""
