"""What guests and their host do: access patterns, phases, host events."""
