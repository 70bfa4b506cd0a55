"""Normalizing flows for Bayesian inference with NumPyro."""

from numpyro_flows import bijections as bijections
from numpyro_flows import flows as flows
from numpyro_flows.anomaly import anomaly_scores as anomaly_scores
from numpyro_flows.density import fit_density as fit_density
from numpyro_flows.diagnostics import compare_with_nuts as compare_with_nuts
from numpyro_flows.distributions import FlowDistribution as FlowDistribution
from numpyro_flows.distributions import sample_sites as sample_sites
from numpyro_flows.guides import AutoFlow as AutoFlow
from numpyro_flows.latent_ode import LatentODE as LatentODE
from numpyro_flows.latent_ode_training import LatentODEFit as LatentODEFit
from numpyro_flows.latent_ode_training import fit_latent_ode as fit_latent_ode
from numpyro_flows.objectives import PathELBO as PathELBO
from numpyro_flows.posterior import FlowPosterior as FlowPosterior
from numpyro_flows.transforms import FlowTransform as FlowTransform
from numpyro_flows.variational import FlowVI as FlowVI
