"""The common part of NumPyro's kernels on a fit: the model's density in the coordinates of the flow's base."""

import warnings
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Array, Float, Key, Scalar, UInt32
from numpyro.infer.mcmc import MCMCKernel

from numpyro_flows.arguments import described
from numpyro_flows.continuous.training_form import without_errors
from numpyro_flows.inference.posterior import FlowPosterior
from numpyro_flows.precision import full_precision

Keys = Key[Array, "..."] | UInt32[Array, "... 2"]
"""One random key of either style, or one for each chain."""


class AbstractFlowKernel(MCMCKernel):
    """A kernel for the posterior of a fit. Model and data come from the fit.

    Raises:
        TypeError: if `posterior` is not a `FlowPosterior`.
        ValueError: if the posterior was loaded without its model.
    """

    def __init__(self, posterior: FlowPosterior):
        if not isinstance(posterior, FlowPosterior):
            raise TypeError(f"posterior expected a FlowPosterior, got {described(posterior)}")
        posterior._require_model()
        if posterior.chains is not None:
            warnings.warn(
                "the posterior's verdict is about its `chains`: its flow may lack modes that they have, and that this "
                "kernel may never reach",
                UserWarning,
                stacklevel=3,
            )
        self._posterior = posterior
        self._target: Any = posterior._target

    @abstractmethod
    def sites(self, z: Any) -> dict[str, Array]:
        """The values of all latent and deterministic sites for one sample of the chain."""

    @property
    def sample_field(self) -> str:
        return "z"

    @property
    def model(self) -> Callable:
        """The model with its data: ArviZ's `from_numpyro(mcmc)` calls it without arguments."""
        return partial(self._posterior.model, *self._posterior.args, **self._posterior.kwargs)

    def postprocess_fn(self, model_args: Any, model_kwargs: Any) -> Any:
        return self.sites

    @full_precision()
    def transport(self, u: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Scalar]:
        """`x = T(u)` and `log p(x, data) + log |det dT/du|`, for the flow's map `T`."""
        x, log_det = without_errors(self._posterior.bijection).transform_and_log_det(u)
        return x, self._target.log_density(x) + log_det


def require_no_arguments(model_args: Any, model_kwargs: Any) -> None:
    """Raise a ValueError if a run got arguments of the model."""
    if model_args or model_kwargs:
        got = [described(value) for value in (model_args or ())] + [f"{name}=..." for name in (model_kwargs or {})]
        raise ValueError(
            f"run expected no model arguments, because the posterior has its own data, got {', '.join(got)}: write "
            "mcmc.run(rng_key). For other data fit them first, with FlowVI(model).run(rng_key, *data)"
        )
