"""A fit as ArviZ's data: an xarray DataTree of draws, weights, predictions and likelihoods."""

import importlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import arviz_base
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import xarray as xr
from arviz_base.io_numpyro import infer_dims
from jaxtyping import Array, ArrayLike, PRNGKeyArray
from numpyro.handlers import seed, substitute, trace, uncondition
from numpyro.infer import init_to_sample, log_likelihood

from numpyro_flows.arguments import described, require_counts, require_key
from numpyro_flows.inference.model_checks import is_factor
from numpyro_flows.inference.result import Result
from numpyro_flows.inference.rows import WithRows
from numpyro_flows.modeling.model_run import model_run
from numpyro_flows.training.ahead import NO_OPTIMIZATION, OPTIMIZATION_LEVEL
from numpyro_flows.training.seeds import SeedRows, Seeds, seed_key

Coords = Mapping[str, Sequence[Any] | ArrayLike]  # values along dimensions, as in ArviZ: {"school": ["Choate", ...]}


def to_datatree(
    posterior: Result,
    rng_key: PRNGKeyArray,
    num_samples: int = 1000,
    num_chains: int = 4,
    coords: Coords | None = None,
) -> xr.DataTree:
    """A fit as a DataTree: see `FlowPosterior.to_datatree`."""
    require_key(rng_key)
    require_counts(num_samples=num_samples, num_chains=num_chains)
    layout = Layout.of(posterior)
    layout.require_known(coords)
    seeds = Seeds.of(rng_key)
    if posterior.chains is not None and posterior.certificate.by == "mcmc":
        num_chains, num_samples = posterior.chains.log_density.shape
        x, log_density = posterior.chains.flat
        stats = {"lp": log_density}
    else:
        keys = map(seed_key, seeds.many(num_chains, "chains"))
        chains = [posterior._draws.resampled(Seeds.of(key), num_samples) for key in keys]
        x, log_density, log_weight = (np.concatenate(leaves) for leaves in zip(*chains))
        stats = {"log_weight": log_weight, "lp": log_density}
    sites = posterior._constrain(x)

    def group(values: Mapping[str, ArrayLike], num_chains: int = num_chains, **attrs: Any) -> xr.Dataset:
        return layout.dataset(in_chains(values, num_chains), coords, **attrs)

    groups = {"posterior": group(sites, attributes=attributes(posterior)), "sample_stats": group(stats)}
    latent, observed = {name: sites[name] for name in posterior._target.site_shapes}, list(layout.observed)
    if observed:
        words = seeds.many(num_chains * num_samples, "predictions")
        predictions = _forward(posterior, words, observed, latent)
        if predictions is not None:
            groups["posterior_predictive"] = group(predictions)
        groups["log_likelihood"] = group(_log_likelihood(posterior, latent, observed))
        groups["observed_data"] = layout.dataset(layout.observed, coords, sample_dims=())
    words = seeds.many(num_samples, "prior")
    prior = _forward(posterior, words, [*sites, *observed], options=NO_OPTIMIZATION)
    if prior is None:  # perhaps it is a likelihood that has no sampler
        prior = _forward(posterior, words, list(sites), with_data=True, options=NO_OPTIMIZATION)
    elif observed:
        groups["prior_predictive"] = group({name: prior[name] for name in observed}, 1)
    if prior is not None:
        groups["prior"] = group({name: prior[name] for name in sites}, 1)
    return xr.DataTree.from_dict(groups)


def in_chains(values: Mapping[str, ArrayLike], num_chains: int) -> dict[str, np.ndarray]:
    """Draws, each `(chains * draws, *site)`, as `(chains, draws, *site)`."""
    arrays = {name: np.asarray(value) for name, value in values.items()}
    return {
        name: array.reshape(num_chains, len(array) // num_chains, *array.shape[1:]) for name, array in arrays.items()
    }


def _log_likelihood(posterior: Result, latent: dict[str, Array], observed: list[str]) -> dict[str, Array]:
    def likelihood(latent: dict[str, Array]) -> dict[str, Array]:
        values = log_likelihood(seed(WithRows(posterior.model), 0), latent, *posterior.args, **posterior.kwargs)
        return {name: values[name] for name in observed}

    with model_run():
        return jax.jit(likelihood, compiler_options=OPTIMIZATION_LEVEL)(latent)


def _forward(
    posterior: Result,
    words: SeedRows,
    names: list[str],
    given: dict[str, Array] | None = None,
    with_data: bool = False,
    options: dict[str, Any] = OPTIMIZATION_LEVEL,
) -> dict[str, Array] | None:
    """Values of some sites, each `(num, *site)`, in runs of the model, one for each row of `words`.

    NumPyro's `Predictive` does the same, but only with Threefry keys, which take twice as long to compile.

    Args:
        posterior: the posterior whose model is run.
        words: seeds, `(num, 4)`.
        names: names of the sites.
        given: values of other sites, each `(num, *site)`.
        with_data: whether observed sites have their data as values; otherwise they are drawn.
        options: options of the compiler.

    Returns:
        The values; None if a site has no sampler.
    """
    model = WithRows(posterior.model)
    model = model if with_data else uncondition(model)

    def run(one: tuple[PRNGKeyArray, dict[str, Array]]) -> dict[str, Array]:
        rng_key, values = one
        sites = trace(seed(substitute(model, values), rng_key)).get_trace(*posterior.args, **posterior.kwargs)
        return {name: sites[name]["value"] for name in names}

    runs = jax.jit(lambda keys, given: jax.lax.map(run, (keys, given)), compiler_options=options)
    for impl, size in (("rbg", 4), ("threefry2x32", 2)):  # JAX has Poisson draws only for the second kind
        keys = jax.random.wrap_key_data(jnp.asarray(words[:, :size]), impl=impl)
        try:
            with model_run():
                return runs(keys, given or {})
        except NotImplementedError:  # raised by NumPyro and JAX without a sampler
            continue
    return None


class Layout(NamedTuple):
    """The layout of a model's data: dimensions of its sites, sizes of its plates, values of its observed sites."""

    dims: dict[str, list[str]]
    sizes: dict[str, int]
    observed: dict[str, Array]

    @classmethod
    @model_run()
    def of(cls, posterior: Result) -> "Layout":
        """The layout of a fitted model."""
        args, kwargs = posterior.args, posterior.kwargs
        # init_to_sample: also for improper priors, which have no sampler
        with_rows, rows = WithRows(posterior.model), posterior._target.rows
        model = substitute(seed(with_rows, 0), substitute_fn=init_to_sample)
        sizes: dict[str, int] = {}

        def observed() -> dict[str, Array]:
            sites = trace(model).get_trace(*args, **kwargs)
            sizes.update({name: site["args"][0] for name, site in sites.items() if site["type"] == "plate"})
            return {
                name: site["value"]
                for name, site in sites.items()
                if site["type"] == "sample" and site["is_observed"] and not is_factor(site["fn"])
                if rows is None or name not in rows.inside
            }

        values = jax.jit(observed)()  # within jit: otherwise a model takes seconds
        _complete_numpyro()
        return cls(infer_dims(with_rows, args, kwargs), sizes, values)

    def require_known(self, coords: Any) -> None:
        """Check that coordinates belong to the model's dimensions, one label for each element."""
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
        """Names of the dimensions of a site's value; none if ArviZ's guess does not fit its shape.

        The guess fails if a site has batch dimensions left of its plates', or a deterministic site has others.
        """
        dims = self.dims.get(name, [])[: len(shape)]
        fits = all(self.sizes.get(dim, size) == size for dim, size in zip(dims, shape))
        return dims if fits else []


def attributes(posterior: Result) -> dict[str, Any]:
    """The certificate and the cost in a form that netCDF can store: numbers and strings, no booleans."""
    certificate = posterior.certificate._asdict()
    certificate["checks"] = "; ".join(f"{check.name}: {check.found}" for check in certificate["checks"])
    return {
        "inference_library": "numpyro_flows",
        **{name: int(value) if isinstance(value, bool | np.bool_) else value for name, value in certificate.items()},
        "reason": str(posterior.reason),
        "looser_settings": posterior._settings.loosened(),
        "sampling_time": float(sum(posterior.seconds.values())),
        "gradient_evaluations": int(sum(posterior.gradient_evaluations.values())),
    }


def _complete_numpyro() -> None:
    """Make the modules that ArviZ's `infer_dims` reads attributes of their packages.

    ArviZ loads NumPyro lazily. If it is imported before NumPyro, `from numpyro.infer import MCMC` runs that package
    twice, and the second copy lacks its modules.
    """
    for package, name in ((numpyro.infer, "initialization"), (numpyro.ops, "pytree")):
        if not hasattr(package, name):
            setattr(package, name, importlib.import_module(f"{package.__name__}.{name}"))
