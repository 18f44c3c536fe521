"""What the paper says, held against numbers: rules, verdicts, and what would have made them no."""
