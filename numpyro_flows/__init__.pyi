"""Normalizing flows for Bayesian inference with NumPyro."""

from . import bijections as bijections
from . import continuous as continuous
from . import flow_plots as flow_plots
from . import flows as flows
from . import gaussianization as gaussianization
from .anomaly import AnomalyScores as AnomalyScores
from .anomaly import anomaly_scores as anomaly_scores
from .density import DensityFit as DensityFit
from .density import fit_density as fit_density
from .diagnostics import NutsComparison as NutsComparison
from .diagnostics import compare_with_nuts as compare_with_nuts
from .distributions import FlowDistribution as FlowDistribution
from .guides import AutoFlow as AutoFlow
from .latent_ode import LatentODE as LatentODE
from .latent_ode_training import LatentODEFit as LatentODEFit
from .latent_ode_training import fit_latent_ode as fit_latent_ode
from .model_sites import sample_sites as sample_sites
from .objectives import PathELBO as PathELBO
from .posterior import FlowPosterior as FlowPosterior
from .transforms import FlowTransform as FlowTransform
from .variational import FlowVI as FlowVI
