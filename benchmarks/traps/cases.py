"""All traps by name."""

from benchmarks.traps import improper, modes, shapes, tails, variations

CASES = modes.CASES | improper.CASES | tails.CASES | shapes.CASES | variations.CASES
