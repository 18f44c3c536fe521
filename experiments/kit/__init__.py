"""What the commands share: flags, files, figures, curves of runs, and plans of many runs."""
