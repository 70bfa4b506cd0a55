"""The workshop of all fits: steps, compiled functions, seeds, clock."""
