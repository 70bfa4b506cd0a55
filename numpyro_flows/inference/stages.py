"""The state that stages of a fit pass on: a stage is a function `stage(context, fit) -> fit`."""

from concurrent.futures import Executor
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from numpyro_flows.bijections import AbstractBijection, Chain, Identity
from numpyro_flows.inference.certificate import Certificate
from numpyro_flows.inference.draws import Chains
from numpyro_flows.inference.gaussian import GaussianFit, no_climbs
from numpyro_flows.inference.host_density import HostDensity, HostPrior
from numpyro_flows.inference.judge import judge
from numpyro_flows.inference.mixture import Mixture
from numpyro_flows.inference.one_period import narrowed
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.survey import Survey, survey_around, weighed
from numpyro_flows.inference.target import Fitted
from numpyro_flows.modeling.guides import AutoFlow, affine
from numpyro_flows.training.ahead import Ahead
from numpyro_flows.training.clock import Clock
from numpyro_flows.training.devices import ONE_DEVICE, Devices
from numpyro_flows.training.reasons import Reason
from numpyro_flows.training.seeds import Seeds
from numpyro_flows.training.watch import Watch


class Context(NamedTuple):
    """The objects that the stages of a fit share.

    target: the model as a density: `dim`, and `log_density(x)` of one vector, to be traced.
    density: the same on the host: `density(points)` gives log densities and gradients in NumPy.
    prior: `prior(seeds, num)` gives draws of the prior, as far as the model's sites have one.
    verify: how thoroughly to search for what a fit lacks: "auto", "thorough", or "weights" for no search.
    guide: the guide, which has the recipe of the flow.
    settings: the constants of the fit.
    seeds: seeds by name: a stage draws by `seeds.rng("name of the stage")`.
    clock: the seconds of the stages.
    pool: threads for compilation.
    watch: progress bar, callback, checkpoint.
    devices: the devices that share the work.
    """

    target: Fitted
    density: HostDensity
    prior: HostPrior
    verify: str
    guide: AutoFlow
    settings: FlowVISettings
    seeds: Seeds
    clock: Clock
    pool: Executor
    watch: Watch
    devices: Devices = ONE_DEVICE


class Fit(NamedTuple):
    """A bijection from `N(0, I)` to the unconstrained posterior, with the verdict on it.

    loc, scale: a Gaussian near the posterior: `scale` is lower-triangular, or a vector if the covariance is diagonal.
    bijection: the fitted bijection; for a Gaussian stage that of the Gaussian.
    certificate: the verdict on the fit's draws.
    log_weights: log weights of these draws.
    survey: the result of a search around the Gaussian; every later verdict needs it.
    losses: loss of every training step.
    num_skipped: number of training steps that changed nothing.
    reason: why training ended; None without training.
    draw: the compiled sampler of the bijection, if there is one.
    log_prob: the compiled density of the bijection, if there is one.
    mixture: the mixture that the verdict is about, if it is about a mixture.
    chains: draws of the mixture, or of Markov chains, if the verdict is about these.
    refused: a mixture that was refused before a flow was trained, the result of its last search, and the fit by it.
    """

    loc: Float[np.ndarray, " dim"]
    scale: Float[np.ndarray, "dim dim"] | Float[np.ndarray, " dim"]
    bijection: AbstractBijection
    certificate: Certificate
    log_weights: Float[np.ndarray, " draws"]
    survey: Survey
    losses: Float[np.ndarray, " steps"] = np.zeros(0)
    num_skipped: int = 0
    reason: Reason | None = None
    draw: Ahead | None = None
    log_prob: Ahead | None = None
    mixture: Mixture | None = None
    chains: Chains | None = None
    refused: "tuple[Mixture, Survey, Fit] | None" = None

    @classmethod
    def before(cls, dim: int) -> "Fit":
        """`N(0, I)`, without any fit or search."""
        dtype = np.dtype(jnp.result_type(float))
        loc, scale = np.zeros(dim, dtype), np.ones(dim, dtype)
        why = "nothing was fitted: the first stage must fit something, such as GaussianStart()"
        certificate = Certificate.unknown(why)
        survey = Survey(left_out="no stage searched for what the fit lacks")
        return cls(loc, scale, _gaussian(loc, scale), certificate, np.full(1, np.nan), survey)

    @property
    def stopped(self) -> bool:
        """Whether no further stage should be tried."""
        return self.reason in (Reason.INTERRUPTED, Reason.NOT_FINITE) or self.survey.improper

    @property
    def judged(self) -> bool:
        return self.certificate.num_draws > 0


class Stage(Protocol):
    """A step of `FlowVI`."""

    def __call__(self, context: Context, fit: Fit) -> Fit: ...


def around(
    context: Context, loc: Float[np.ndarray, " dim"], scale: Float[np.ndarray, "dim dim"] | Float[np.ndarray, " dim"]
) -> Fit:
    """The fit that is a given Gaussian. A stage that starts from its own Gaussian returns this."""
    loc, scale = (np.asarray(array, context.density.dtype) for array in (loc, scale))
    return surveyed(context, GaussianFit(loc, scale, -np.inf, no_climbs(loc)))


def surveyed(context: Context, gaussian: GaussianFit) -> Fit:
    """A Gaussian with its verdict and the result of a search around it, which may find a better Gaussian elsewhere."""
    density, settings, coordinates = context.density, context.settings, context.target.coordinates
    rng = context.seeds.rng("survey")
    if context.verify == "weights":
        gaussian = narrowed(gaussian, coordinates.periodic)
        draws, survey = weighed(density, gaussian, coordinates, rng, settings), Survey()
    else:
        prior = context.prior(context.seeds, settings.prior_draws)
        gaussian, draws, survey = survey_around(density, rng, gaussian, prior, coordinates, settings)
    return Fit(
        loc=gaussian.loc,
        scale=gaussian.scale,
        bijection=_gaussian(gaussian.loc, gaussian.scale),
        certificate=judge(draws, survey, settings),
        log_weights=np.asarray(draws.log_weight, np.float64),
        survey=survey,
        reason=None if not survey.left_out else Reason.INTERRUPTED if gaussian.usable else Reason.NOT_FINITE,
    )


def _gaussian(loc: np.ndarray, scale: np.ndarray) -> Chain:
    return Chain([Identity(loc.shape), affine(loc, scale)])
