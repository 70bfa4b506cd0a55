"""A fit as ArviZ's data: an xarray DataTree of draws, weights, predictions and likelihoods."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import arviz_base
import jax
import numpy as np
import xarray as xr
from arviz_base.io_numpyro import infer_dims
from jaxtyping import Array, ArrayLike, PRNGKeyArray
from numpyro.handlers import seed, substitute, trace, uncondition
from numpyro.infer import Predictive, init_to_sample, log_likelihood

from numpyro_flows.arguments import described, require_counts, require_key
from numpyro_flows.inference.model_checks import is_factor
from numpyro_flows.inference.result import Result
from numpyro_flows.modeling.model_run import model_run

Coords = Mapping[str, Sequence[Any] | ArrayLike]  # values along dimensions, as in ArviZ: {"school": ["Choate", ...]}


def to_datatree(
    posterior: Result, rng_key: PRNGKeyArray, num_samples: int = 1000, coords: Coords | None = None
) -> xr.DataTree:
    """A fit as a DataTree: see `FlowPosterior.to_datatree`."""
    require_key(rng_key)
    require_counts(num_samples=num_samples)
    layout = Layout.of(posterior)
    layout.require_known(coords)
    draw_key, predictive_key = rng_key, jax.random.fold_in(rng_key, 1)
    draws = posterior._resampled_draws(draw_key, num_samples)
    sites = posterior._constrain(draws.x)
    stats = {"log_weight": draws.log_weight, "lp": draws.log_density}
    groups = {
        "posterior": layout.dataset(_one_chain(sites), coords, attributes(posterior)),
        "sample_stats": layout.dataset(_one_chain(stats)),
    }
    if layout.observed:
        model, args, kwargs = posterior.model, posterior.args, posterior.kwargs
        latent = {name: sites[name] for name in posterior._target.site_shapes}
        observed = list(layout.observed)
        predictive = Predictive(uncondition(model), latent, return_sites=observed)
        try:
            with model_run():
                predictions = predictive(predictive_key, *args, **kwargs)
            groups["posterior_predictive"] = layout.dataset(_one_chain(predictions), coords)
        except NotImplementedError:  # what NumPyro raises where a distribution has no sampler
            pass
        with model_run():
            likelihood = log_likelihood(seed(model, 0), latent, *args, **kwargs)
        likelihood = {name: likelihood[name] for name in observed}
        groups["log_likelihood"] = layout.dataset(_one_chain(likelihood), coords)
        groups["observed_data"] = layout.dataset(layout.observed, coords, sample_dims=())
    return xr.DataTree.from_dict(groups)


def posterior_dataset(posterior: Result, draws: Mapping[str, ArrayLike], coords: Coords | None = None) -> xr.Dataset:
    """Draws of sites, each `(num_samples, *site)`, as a Dataset with named dimensions and the certificate."""
    layout = Layout.of(posterior) if posterior.has_model else Layout({}, {}, {})
    return layout.dataset(_one_chain(draws), coords, attributes(posterior))


class Layout(NamedTuple):
    """What a model says of its data: dimensions of its sites, sizes of its plates, values of its observed sites."""

    dims: dict[str, list[str]]
    sizes: dict[str, int]
    observed: dict[str, Array]

    @classmethod
    @model_run()
    def of(cls, posterior: Result) -> "Layout":
        """The layout of a fitted model."""
        args, kwargs = posterior.args, posterior.kwargs
        # init_to_sample: also for improper priors, which have no sampler
        model = substitute(seed(posterior.model, 0), substitute_fn=init_to_sample)
        sizes: dict[str, int] = {}

        def observed() -> dict[str, Array]:
            sites = trace(model).get_trace(*args, **kwargs)
            sizes.update({name: site["args"][0] for name, site in sites.items() if site["type"] == "plate"})
            return {
                name: site["value"]
                for name, site in sites.items()
                if site["type"] == "sample" and site["is_observed"] and not is_factor(site["fn"])
            }

        values = jax.jit(observed)()  # within jit: op by op, a model takes seconds
        return cls(infer_dims(posterior.model, args, kwargs), sizes, values)

    def require_known(self, coords: Any) -> None:
        """Make sure that coordinates are of the model's dimensions, one label for each element."""
        if not (coords is None or isinstance(coords, Mapping)):
            raise TypeError(f"coords expected a dict of labels by dimension, got {described(coords)}")
        known = sorted({dim for dims in self.dims.values() for dim in dims} | self.sizes.keys())
        for dim, labels in (coords or {}).items():
            if dim not in known:
                raise ValueError(f"coords expected dimensions of the model, {known}, got {dim!r}")
            if np.ndim(labels) != 1:
                raise TypeError(f"coords expected a list of labels of {dim!r}, got {described(labels)}")
            if len(labels) != self.sizes.get(dim, len(labels)):
                raise ValueError(f"coords expected {self.sizes[dim]} labels of {dim!r}, got {len(labels)}")

    def dataset(
        self,
        values: Mapping[str, ArrayLike],
        coords: Coords | None = None,
        attributes: dict[str, Any] | None = None,
        sample_dims: Sequence[str] = ("chain", "draw"),
    ) -> xr.Dataset:
        """Values of sites, each `(*sample_dims, *site)`, as a Dataset."""
        arrays = {name.replace("/", "."): np.asarray(value) for name, value in values.items()}
        shapes = {name: np.shape(value)[len(sample_dims) :] for name, value in values.items()}
        dims: dict[Hashable, Sequence[Hashable]] = {
            name.replace("/", "."): self._dims_of(name, shape) for name, shape in shapes.items()
        }
        used = {dim for names in dims.values() for dim in names}
        return arviz_base.dict_to_dataset(
            arrays,
            attrs=attributes,
            dims=dims,
            coords={dim: np.asarray(value) for dim, value in (coords or {}).items() if dim in used},
            sample_dims=list(sample_dims),
        )

    def _dims_of(self, name: str, shape: tuple[int, ...]) -> list[str]:
        """Names of the dimensions of a site's value; none where ArviZ's guess does not fit its shape.

        It does not where a site has batch dimensions left of its plates', or a deterministic one has others.
        """
        dims = self.dims.get(name, [])[: len(shape)]
        fits = all(self.sizes.get(dim, size) == size for dim, size in zip(dims, shape))
        return dims if fits else []


def _one_chain(values: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value)[None] for name, value in values.items()}


def attributes(posterior: Result) -> dict[str, Any]:
    """The certificate and the work as netCDF stores them: numbers and strings, no booleans."""
    certificate = posterior.certificate._asdict()
    return {
        "inference_library": "numpyro_flows",
        **{name: int(value) if isinstance(value, bool | np.bool_) else value for name, value in certificate.items()},
        "reason": str(posterior.reason),
        "looser_settings": posterior._settings.loosened(),
        "sampling_time": float(sum(posterior.seconds.values())),
        "gradient_evaluations": int(sum(posterior.gradient_evaluations.values())),
    }
