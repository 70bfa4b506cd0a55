"""Normalizing flows for Bayesian inference with NumPyro."""

from . import bijections as bijections
from . import continuous as continuous
from . import flow_plots as flow_plots
from . import flows as flows
from . import gaussianization as gaussianization
from .density.anomaly import AnomalyScores as AnomalyScores
from .density.anomaly import anomaly_scores as anomaly_scores
from .density.fit import DensityFit as DensityFit
from .density.fit import fit_density as fit_density
from .diagnostics import NutsComparison as NutsComparison
from .diagnostics import compare_with_nuts as compare_with_nuts
from .inference.flow_training import FlowTraining as FlowTraining
from .inference.flow_vi import FlowVI as FlowVI
from .inference.losses import ForwardKL as ForwardKL
from .inference.losses import PathKL as PathKL
from .inference.posterior import FlowPosterior as FlowPosterior
from .inference.settings import FlowVISettings as FlowVISettings
from .inference.start import GaussianStart as GaussianStart
from .latent_ode.fit import LatentODEFit as LatentODEFit
from .latent_ode.fit import fit_latent_ode as fit_latent_ode
from .latent_ode.model import LatentODE as LatentODE
from .modeling.distributions import FlowDistribution as FlowDistribution
from .modeling.elbo import PathELBO as PathELBO
from .modeling.guides import AutoFlow as AutoFlow
from .modeling.model_sites import sample_sites as sample_sites
from .modeling.transforms import FlowTransform as FlowTransform
