"""Amortised inference: one flow of the latent sites given the data, trained on draws of the model itself."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_flows import flows
from numpyro_flows.amortized.data import DataSets
from numpyro_flows.amortized.many import many_posteriors
from numpyro_flows.amortized.passes import Passes
from numpyro_flows.amortized.posterior import AmortizedPosterior
from numpyro_flows.arguments import require_callable, require_counts, require_instance, require_key, require_model
from numpyro_flows.density.fit import fit_density
from numpyro_flows.flows import Recipe
from numpyro_flows.inference.model_arguments import copied, run_with_arguments
from numpyro_flows.inference.target import Target
from numpyro_flows.modeling.columns import is_angle
from numpyro_flows.modeling.simulation import Simulator, with_data
from numpyro_flows.training.seeds import Seeds

_ENCODED = 32  # numbers that an encoder makes of a set
_STEPS_OF_SETS = 2_000  # a step costs what all places of its sets do; weights move a flow that is not quite trained
_FRESH, _DRAWS = 200, 4_000  # data sets, and draws of each posterior, that a flow is judged on
_ENOUGH = 0.9  # share of them with a good verdict


class AmortizedFlow:
    """`q(latents | data)` for all data sets that a model can make: trained once, then a posterior takes milliseconds.

    Latents and data are drawn from the model itself, and a conditional flow is fitted to them by `fit_density`: it
    minimises `E_p(data) KL(p(latents | data) || q(latents | data))`. As the model has a density, every posterior gets
    importance weights and the verdict of `FlowVI`. Where that is not good enough, `FlowVI` starts from the flow's
    draws.

    Verdicts on fresh data sets that the model draws check the flow. By default it has affine couplings, which are fast
    to train and to draw from. If fewer than nine in ten of the fresh posteriors are certified, splines are trained as
    well, and the better flow is kept.

    For a simulator without a density, fit pairs: `fit_density(key, parameters, condition=data)`, and check the result
    by `simulation_based_calibration`, as there is no verdict on single posteriors.

    Args:
        model: a NumPyro model whose latent sites are continuous, with priors that can be drawn from.
        observed: names of the sites that are data.
        flow: a recipe, as `fit_density` takes it, in place of affine couplings or splines.
        encoder: an Equinox module that makes a vector of one data set: of the dict of observed sites, or, with `sizes`,
            of a dict of `values` `(most, numbers of an observation)` and a `mask` `(most,)`. By default a
            `SetEmbedding` with `sizes`, and none without, for data of few numbers.
        sizes: least and most observations of a data set, for models whose observations are exchangeable: all observed
            sites then have the observations along their first axis, and the model draws the most.
        num_simulations: draws of the model to train on.
        options: of `fit_density`, such as `num_steps`.

    Raises:
        TypeError: where an argument is of another kind.
        ValueError: for numbers out of their range.

    Source: Papamakarios, Murray 2016, arXiv 1605.06376; Greenberg, Nonnenmacher, Macke 2019, arXiv 1905.07488;
    Dax et al. 2023, arXiv 2210.05686, for the weights.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro_flows import AmortizedFlow
        >>> def model(y=None):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 1))
        ...     numpyro.sample("y", dist.Normal(mu, 1).expand([3]), obs=y)
        >>> amortized = AmortizedFlow(model, observed=["y"], num_simulations=5_000, progress_bar=False)
        >>> amortized = amortized.fit(jax.random.key(0))
        >>> amortized.posterior({"y": jax.numpy.array([1.0, 0.3, 2.0])}).certified
        True
    """

    def __init__(
        self,
        model: Callable,
        *,
        observed: Sequence[str],
        flow: Recipe | None = None,
        encoder: Callable | None = None,
        sizes: tuple[int, int] | None = None,
        num_simulations: int = 50_000,
        **options: Any,
    ):
        require_model(model)
        if flow is not None:
            require_callable("flows.nsf_coupling", flow=flow)
        if encoder is not None:
            require_instance(eqx.Module, "embeddings.SetEmbedding(key, 1)", encoder=encoder)
        require_counts(100, num_simulations=num_simulations)
        taken = sorted(options.keys() & {"condition", "embedding", "support", "base", "weights", "dequantize"})
        if taken:
            raise ValueError(f"options expected others of fit_density than {taken}, which the model decides")
        self.model, self.observed, self.sizes = model, observed, sizes
        self._recipes = [flows.realnvp, flows.nsf_coupling] if flow is None else [flow]
        if sizes is not None:
            options = {"num_steps": _STEPS_OF_SETS} | options
        self._fit = partial(fit_density, **options)
        self._encoder, self._num = encoder, num_simulations

    def fit(self, rng_key: PRNGKeyArray, *args: Any, **kwargs: Any) -> AmortizedPosterior:
        """Draw from the model called with `args` and `kwargs`, None in place of the data, and train the flow.

        Raises:
            TypeError: where `rng_key` is not one random key.
            ValueError: if the model lacks an observed site, has data for one, or has factors. Also if its latent sites
                are discrete or circular, or have supports that depend on other sites, and for `sizes` that the model
                does not draw.
        """
        require_key(rng_key)
        seeds = Seeds.of(rng_key)
        args, kwargs = copied((args, kwargs))  # the flow is for these numbers
        simulate = partial(Simulator, self.model, self.observed)
        args, kwargs, simulator = run_with_arguments(simulate, self.model, args, kwargs)
        shapes = {name: simulator.shapes[name] for name in simulator.observed}
        data_sets = DataSets.of(shapes, self.sizes, encoded=self._encoder is not None)
        draws = simulator(seeds.key("simulations"), self._num)
        one = {name: values[0] for name, values in draws.data.items()}
        target = Target(with_data(self.model), seeds.key("model"), (one, *args), kwargs)
        supports = target.supports()
        angles = [name for name, support in supports.items() if is_angle(support)]
        if angles or target.free.any():
            raise ValueError(
                f"expected latent sites on real numbers or intervals without a mask, got {angles or 'masked ones'}"
            )
        encoder = self._encoder or data_sets.encoder(seeds.key("encoder"), _ENCODED)
        latents = {name: np.asarray(draws.latents[name], float) for name in target.site_shapes}
        conditions = data_sets.drawn(draws.data, seeds.rng("sizes"))
        fresh = simulator(seeds.key("fresh"), _FRESH).data
        best, most, conditioned = None, -1.0, with_data(self.model)
        for recipe in self._recipes:
            try:
                flow = self._fit(
                    seeds.key("flow"), latents, flow=recipe, condition=conditions, support=supports, embedding=encoder
                )
            except Exception as error:  # of whatever kind: the first flow must not be lost
                if best is None:
                    raise
                warnings.warn(f"splines could not be fitted, and affine couplings are kept: {error}", stacklevel=2)
                break
            passes = Passes(conditioned, flow, data_sets, one, args, kwargs)
            verdicts = many_posteriors(passes, seeds.key("verdicts"), fresh, _DRAWS)[0].table
            share = float(verdicts["certified"].to_numpy().mean())
            if share > most:
                best, most = AmortizedPosterior(self.model, flow, data_sets, args, kwargs, verdicts), share
            if share >= _ENOUGH:
                break
        assert best is not None
        return best
