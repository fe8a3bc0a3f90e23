"""What KVM leans on: locks, RCU, the host's memory."""
