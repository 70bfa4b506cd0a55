"""Fits against references: the same posterior by NUTS."""

from numpyro_flows.diagnostics.nuts import NutsComparison as NutsComparison
from numpyro_flows.diagnostics.nuts import compare_with_nuts as compare_with_nuts
