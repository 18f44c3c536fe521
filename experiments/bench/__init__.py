"""Timing: rows in turn, how a step grows, and the agents of another library beside ours."""
