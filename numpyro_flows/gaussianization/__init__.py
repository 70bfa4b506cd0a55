"""Gaussianization: maps data to a standard normal variable layer by layer, to inspect and measure the data."""

from numpyro_flows.gaussianization.empirical import EmpiricalMarginal as EmpiricalMarginal
from numpyro_flows.gaussianization.information import Estimate as Estimate
from numpyro_flows.gaussianization.information import entropy as entropy
from numpyro_flows.gaussianization.information import kl_divergence as kl_divergence
from numpyro_flows.gaussianization.information import mutual_information as mutual_information
from numpyro_flows.gaussianization.information import negentropy as negentropy
from numpyro_flows.gaussianization.information import total_correlation as total_correlation
from numpyro_flows.gaussianization.inspection import LayerTable as LayerTable
from numpyro_flows.gaussianization.inspection import inspect_layers as inspect_layers
from numpyro_flows.gaussianization.marginals import fit_empirical as fit_empirical
from numpyro_flows.gaussianization.marginals import fit_mixture as fit_mixture
from numpyro_flows.gaussianization.marginals import fit_spline as fit_spline
from numpyro_flows.gaussianization.rbig import RBIG as RBIG
from numpyro_flows.gaussianization.rbig import fit_rbig as fit_rbig
from numpyro_flows.gaussianization.rotations import ica as ica
from numpyro_flows.gaussianization.rotations import most_informative as most_informative
from numpyro_flows.gaussianization.rotations import pca as pca
