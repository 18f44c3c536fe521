"""Training: rounds, evaluation, checkpoints and records."""
