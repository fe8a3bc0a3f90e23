"""The controlled scheduler: every relevant order of every thread's operations."""
