"""Numbers of runs and what they say: returns with intervals, and the paper's statements, each with
what would have made it no.
"""
