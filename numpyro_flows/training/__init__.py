"""The common parts of all fits: training steps, compiled functions, seeds, clock."""
