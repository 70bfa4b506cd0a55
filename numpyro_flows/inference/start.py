"""The first stage: a Gaussian, from several starts."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpyro.infer.initialization import init_to_uniform

from numpyro_flows.inference.compiled import compile_starts
from numpyro_flows.inference.gaussian import fit_gaussian
from numpyro_flows.inference.stages import Context, Fit, surveyed
from numpyro_flows.inference.target import Reduced
from numpyro_flows.training.ahead import Ahead


@dataclass(frozen=True)
class GaussianStart:
    """The stage that fits a Gaussian from several starts, and searches around it for other modes and heavy tails.

    Newton's method climbs from every start to a mode. Natural gradients then refine the best Gaussian at a mode.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro_flows import FlowVI, GaussianStart
        >>> def model():
        ...     numpyro.sample("x", dist.Gamma(3.0, 1.0))
        >>> gaussian = FlowVI(model, stages=(GaussianStart(),), progress_bar=False).run(jax.random.key(0))
        >>> gaussian.losses.size
        0
    """

    def __call__(self, context: Context, fit: Fit) -> Fit:
        settings, clock = context.settings, context.clock
        by_model = None
        if context.guide.init_loc_fn is not init_to_uniform or isinstance(context.target, Reduced):
            with clock.stage("tracing"):
                by_model = compile_starts(context.pool, context.target, context.guide.init_loc_fn)
        with clock.stage("compilation"):
            context.density.wait()
        with clock.stage("gaussian"):
            starts = _starts(context, by_model)
            gaussian = fit_gaussian(context.density, context.seeds.rng("gaussian"), starts, settings)
            if not np.isfinite(gaussian.elbo):
                context.target.require_finite(jnp.asarray(starts))
            return surveyed(context, gaussian)


def _starts(context: Context, by_model: Ahead | None) -> Float[np.ndarray, "starts dim"]:
    """Starts by a user's own strategy; by default uniform ones, or half uniform and half drawn from the prior."""
    num, seeds = context.settings.num_starts, context.seeds
    if by_model is not None:
        starts = np.stack([by_model(seed) for seed in seeds.many(num, "starts")])
    else:
        starts = context.prior(seeds, num, "starts").x
    if context.guide.init_loc_fn is not init_to_uniform:
        return starts
    radius, shape = context.settings.start_radius, (2 * num - len(starts), context.target.dim)
    uniform = seeds.rng("uniform starts").uniform(-radius, radius, shape)
    return np.concatenate([uniform, starts]).astype(context.density.dtype)
