"""What the numbers of runs say: returns with intervals, and verdicts on the paper's statements,
each with what would have refuted it.
"""
