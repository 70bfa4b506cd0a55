"""Comparison of fits with references: NUTS on the same posterior, and the true values of simulated data sets."""

from numpyro_flows.diagnostics.calibration import Calibration as Calibration
from numpyro_flows.diagnostics.calibration import simulation_based_calibration as simulation_based_calibration
from numpyro_flows.diagnostics.nuts import NutsComparison as NutsComparison
from numpyro_flows.diagnostics.nuts import compare_with_nuts as compare_with_nuts
