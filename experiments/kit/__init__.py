"""What the binaries share: flags, files, figures, curves of runs, and plans of many runs."""
