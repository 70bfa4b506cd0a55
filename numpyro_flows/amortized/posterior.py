"""A trained amortised flow: posteriors of single data sets, and of many at once."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_flows.amortized.data import DataSets
from numpyro_flows.amortized.many import ManyPosteriors, many_posteriors
from numpyro_flows.amortized.passes import Passes, vector_of
from numpyro_flows.amortized.stages import Judged, StartFrom
from numpyro_flows.arguments import as_array, require_counts, require_key
from numpyro_flows.bijections import AbstractBijection, Chain, Given, TriangularAffine
from numpyro_flows.inference.flow_training import FlowTraining
from numpyro_flows.inference.flow_vi import FlowVI, run_without_warning
from numpyro_flows.inference.mixture_training import MixtureTraining
from numpyro_flows.inference.model_arguments import run_with_arguments
from numpyro_flows.inference.posterior import FlowPosterior
from numpyro_flows.modeling.distributions import FlowDistribution
from numpyro_flows.modeling.simulation import Simulator, with_data

if TYPE_CHECKING:
    import pandas as pd

_PRIOR_DRAWS = 20  # at which two priors are compared
_DRAWS = 4_000  # by which the base is moved


class AmortizedPosterior:
    """`q(latents | data)` of a model; made by `AmortizedFlow.fit`.

    Attributes:
        flow: the conditional `FlowDistribution` of the latent sites, whose `fit` tells how it was trained.
        verdicts: on 200 data sets that the model drew after training, as `ManyPosteriors.table` has them.
        model: the model whose first argument is a dict of the observed sites, as `FlowPosterior.load` needs it.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro_flows import AmortizedFlow
        >>> def model(y=None):
        ...     numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1)), 1), obs=y)
        >>> amortized = AmortizedFlow(model, observed=["y"], num_simulations=2_000, progress_bar=False)
        >>> amortized = amortized.fit(jax.random.key(0))
        >>> amortized.posterior({"y": 1.0}).sample(jax.random.key(1), 100)["mu"].shape
        (100,)
    """

    def __init__(
        self,
        model: Callable,
        flow: FlowDistribution,
        data_sets: DataSets,
        args: tuple,
        kwargs: dict[str, Any],
        verdicts: "pd.DataFrame",
    ):
        self.model, self.flow, self._whole_model, self.verdicts = with_data(model), flow, model, verdicts
        self._data_sets, self._args, self._kwargs = data_sets, args, kwargs
        self._latest_passes: Passes | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_latest_passes": None}  # compiled functions cannot be pickled

    def __repr__(self) -> str:
        assert self.flow.sites is not None
        sites, data, certified = list(self.flow.sites.shapes), list(self._data_sets.shapes), self.verdicts["certified"]
        share = f"{certified.sum()} of {len(certified)} fresh data sets certified"
        return f"AmortizedPosterior({sites} given {data}, {share})"

    def posterior(
        self,
        data: Mapping[str, Any],
        *args: Any,
        rng_key: PRNGKeyArray | None = None,
        verify: Literal["auto", "thorough", "weights"] = "auto",
        refit: bool = True,
        **kwargs: Any,
    ) -> FlowPosterior:
        """The posterior of one data set, by fresh draws of the flow with importance weights by the model's own density.

        If the verdict is bad, the flow's base is moved and scaled by what the weights say, and the flow is checked
        again. If that does not help, `FlowVI` fits the data set, from starts among the flow's draws.

        Args:
            data: values of the observed sites.
            args: the model's arguments, and `kwargs`, if they differ from those of `fit`, as for other sizes. They may
                not change the prior of the latent sites.
            rng_key: for the verdict.
            verify: how hard to search for what the flow lacks, as in `FlowVI`.
            refit: whether `FlowVI` fits the data set when the flow's posterior is not certified.

        Raises:
            ValueError: if the data lack a site, or have another shape than the model draws when it is called with
                these arguments; and for arguments that change the prior.
        """
        key = jax.random.key(0) if rng_key is None else rng_key
        require_key(key)
        given = Given(self.flow.bijection, vector_of(self.flow, self._data_sets.condition(data)))
        arrays = {name: as_array(data[name], f"data {name!r}") for name in self._data_sets.shapes}
        args, kwargs = self._arguments(args, kwargs)
        self._require_drawn(arrays, args, kwargs)

        def judged(bijection: AbstractBijection) -> FlowPosterior:
            stages = [Judged(Chain([bijection]))]  # a chain, as a stored fit has it
            fit = FlowVI(self.model, stages=stages, verify=verify, fallback=None, progress_bar=False)
            return run_without_warning(fit, key, (arrays, *args), kwargs)

        posterior = judged(given)
        if posterior.certified:
            return posterior
        one = {name: np.asarray(values)[None] for name, values in arrays.items()}
        many, base = many_posteriors(self._passes(one, args, kwargs), key, one, _DRAWS)
        start = given
        if many.certified[0]:
            start = Chain([TriangularAffine(base.loc[0], base.tril[0]), given])
            moved = judged(start)
            if moved.certified:
                return moved
        if not refit:
            warnings.warn(f"the fit is not certified: {posterior.why}", UserWarning, stacklevel=2)
            return posterior
        stages = [StartFrom(Chain([start])), MixtureTraining(), FlowTraining()]
        again = FlowVI(self.model, stages=stages, verify=verify, progress_bar=False)
        return again.run(key, arrays, *args, **kwargs)

    def posteriors(
        self, rng_key: PRNGKeyArray, data: Mapping[str, Any], *args: Any, num_draws: int = 4_000, **kwargs: Any
    ) -> ManyPosteriors:
        """The posteriors of many data sets at once: draws with importance weights, and a verdict on each by these.

        It is the verdict of `FlowVI(verify="weights")`: there is no search for what the flow lacks. Training on draws
        of the model covers all modes of its posteriors; but a data set that the model would not make can be one that
        the flow has never seen. `posterior` searches.

        Args:
            rng_key: for the draws.
            data: values of the observed sites, with a leading axis of data sets.
            args: the model's arguments, and `kwargs`, if they differ from those of `fit`, as in `posterior`.
            num_draws: of each data set, at least 1,000. The fewer, the weaker is the verdict: 1,000 do not show a heavy
                tail that has a few percent of the posterior.

        Raises:
            ValueError: where the data lack a site, or have another shape.
        """
        require_key(rng_key)
        require_counts(1_000, num_draws=num_draws)
        args, kwargs = self._arguments(args, kwargs)
        arrays = self._data_sets.many(data)
        self._require_drawn({name: values[0] for name, values in arrays.items()}, args, kwargs)
        return many_posteriors(self._passes(arrays, args, kwargs), rng_key, arrays, num_draws)[0]

    def _passes(self, data: dict[str, np.ndarray], args: tuple, kwargs: dict[str, Any]) -> Passes:
        """Compiled functions for data sets of these shapes; the latest ones are kept."""
        passes = self._latest_passes  # read once: another thread may set it
        if passes is None or not passes.are_for(args, kwargs):
            first = {name: values[0] for name, values in data.items()}
            self._latest_passes = passes = Passes(self.model, self.flow, self._data_sets, first, args, kwargs)
        return passes

    def _arguments(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """A call's own arguments, and those of `fit` where it has none."""
        if not args and not kwargs:
            return self._args, self._kwargs
        args, kwargs = args or self._args, kwargs or self._kwargs
        simulator = partial(Simulator, self._whole_model, list(self._data_sets.shapes))
        return run_with_arguments(simulator, self._whole_model, args, kwargs)[:2]

    def _require_drawn(self, data: dict[str, Any], args: tuple, kwargs: dict[str, Any]) -> None:
        """Data and latent sites have the shapes that the model draws: others may broadcast, and count many times."""
        drawn = Simulator(self._whole_model, list(self._data_sets.shapes), args, kwargs).shapes
        for name, values in data.items():
            if values.shape != drawn[name]:
                raise ValueError(
                    f"data {name!r} expected the shape {drawn[name]}, as the model draws it when it is called with "
                    f"these arguments, got {values.shape}"
                )
        assert self.flow.sites is not None
        latents = {name: drawn.get(name) for name in self.flow.sites.shapes}
        if latents != self.flow.sites.shapes:
            raise ValueError(
                f"expected latent sites of the shapes {self.flow.sites.shapes}, as in training, got {latents}: none "
                "may depend on the number of observations"
            )
        if args is self._args and kwargs is self._kwargs:
            return
        draws = Simulator(self._whole_model, list(data), self._args, self._kwargs)(
            jax.random.key(0), _PRIOR_DRAWS
        ).latents
        densities = [
            np.asarray(Simulator(self._whole_model, list(data), *given).log_prior(draws), np.float64)
            for given in ((self._args, self._kwargs), (args, kwargs))
        ]
        if not np.allclose(*densities, rtol=1e-4, atol=1e-3):
            raise ValueError(
                "expected arguments under which the latent sites have the prior of the training, got others: the flow "
                "knows nothing of another prior; train one for these arguments"
            )
