"""Timing: rows timed in turn, how the cost of a step grows, and agents of another library."""
