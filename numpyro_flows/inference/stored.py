"""A fit in the form of a file or a pickle, and stand-ins for a missing model."""

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Scalar
from numpyro.distributions import constraints

from numpyro_flows.bijections import AbstractBijection, Chain
from numpyro_flows.files.tree import load_tree
from numpyro_flows.inference.certificate import Certificate, certify
from numpyro_flows.inference.coordinates import Coordinates
from numpyro_flows.inference.draws import Chains
from numpyro_flows.inference.fingerprint import Fingerprint, fingerprint
from numpyro_flows.inference.judge_draws import Agreement
from numpyro_flows.inference.mixture import Bell, Mixture
from numpyro_flows.inference.product import Product
from numpyro_flows.inference.result import Result
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.sliced import Sliced
from numpyro_flows.inference.target import Target
from numpyro_flows.modeling.angles import is_on_line, with_angles_on_line
from numpyro_flows.modeling.guides import centre_of
from numpyro_flows.modeling.sites import Sites, SitesTransform

_LEAST_WEIGHTS = 1_000
_Stored = Bell | Product | Sliced
_POINTS = 3  # points at which log densities are compared
_ULPS = 256  # units of precision by which a log density may differ between machines and versions


class StoredFit(NamedTuple):
    """The part of a `FlowPosterior` that a file stores: everything except the model and its data.

    Attributes:
        bijection: the trained map from `N(0, I)` to the unconstrained latent vector.
        prefix: prefix of the guide's names.
        log_weights: importance weights, from which loading makes the certificate.
        components, shares: those of the mixture with these weights; None if there is none, or it contains a flow.
        chains: draws of a mixture, or of Markov chains, whose agreement is checked on loading.
        by: the basis of the verdict, "weights" or "mcmc".
        refused: why the fit was not certified; empty if it was. A file can only refuse.
        beyond: share of the posterior beyond every draw.
        shapes: unconstrained shapes of the latent sites.
        sites: shapes and supports of the latent sites; None if a support depends on other sites.
        free_entries: number of entries that a mask removes from the density, by site.
        points: unconstrained vectors.
        log_densities: the model's log densities at `points`.
        fingerprint: fingerprint of the model's arguments.
    """

    bijection: AbstractBijection
    prefix: str
    log_weights: Float[np.ndarray, " draws"]
    components: tuple[_Stored, ...] | None
    shares: Float[np.ndarray, " components"] | None
    chains: Chains | None
    by: Literal["weights", "mcmc"]
    refused: str
    beyond: float
    losses: Float[np.ndarray, " steps"]
    seconds: dict[str, float]
    gradient_evaluations: dict[str, int]
    value_evaluations: dict[str, int]
    num_skipped: int
    reason: str
    shapes: dict[str, tuple[int, ...]]
    sites: Sites | None
    free_entries: dict[str, int]
    points: Float[np.ndarray, "points dim"]
    log_densities: Float[np.ndarray, " points"]
    fingerprint: Fingerprint

    @classmethod
    def of(cls, posterior: Result) -> "StoredFit":
        """The stored part of a posterior."""
        target = posterior._target
        points = posterior._draws.first_of_flow(_POINTS)  # compiled already
        components, shares = _in_files(posterior._draws.mixture)
        return cls(
            bijection=posterior.bijection,
            prefix=posterior._guide.prefix,
            log_weights=np.asarray(posterior.log_weights),
            components=components,
            shares=shares,
            chains=posterior.chains,
            by=posterior.certificate.by,
            refused=_refusal(posterior),
            beyond=float(posterior.certificate.beyond),
            losses=np.asarray(posterior.losses),
            seconds={name: float(seconds) for name, seconds in posterior.seconds.items()},
            gradient_evaluations={name: int(number) for name, number in posterior.gradient_evaluations.items()},
            value_evaluations={name: int(number) for name, number in posterior.value_evaluations.items()},
            num_skipped=int(posterior.num_skipped),
            reason=str(posterior.reason),
            shapes=dict(target.shapes),
            sites=_sites_of(target),
            free_entries=dict(target.free_entries),
            points=np.asarray(points),
            log_densities=_log_densities(target, points),
            fingerprint=target.unchanged_fingerprint(),
        )

    @classmethod
    def read(cls, path: str | os.PathLike, trusted: tuple[type, ...]) -> "StoredFit":
        """The contents of a file; a TypeError if `trusted` is not a tuple of classes, a ValueError for a bad file."""
        fit = load_tree(path, "FlowPosterior", cls, trusted=trusted)
        try:
            fit.require_coherent()
        except Exception as error:  # from JAX, if shapes do not fit
            raise ValueError(f"expected a whole fit in {os.fspath(path)!r}: {error}") from error
        return fit

    def certificate(self) -> Certificate:
        """The verdict on the stored weights, never a stored one; a refusal for other reasons is kept."""
        certificate = certify(self.log_weights)
        if self.by == "mcmc" and self.chains is not None:
            agreement = Agreement.of(self.chains.x)
            known = certificate.khat < FlowVISettings().max_khat  # of the mixture's weights, which have the evidence
            why, num = agreement.why(np.arange(self.chains.x.shape[2])), self.chains.log_density.size
            certificate = Certificate.unknown(why, num)._replace(
                certified=not why,
                khat=float("nan"),
                ess=float("nan"),
                max_weight=float("nan"),
                log_evidence=certificate.log_evidence if known else float("nan"),
                log_evidence_se=certificate.log_evidence_se if known else float("nan"),
                **agreement.worst(),
            )
        certificate = certificate.with_beyond(self.beyond)
        return certificate._replace(certified=False, why=self.refused) if self.refused else certificate

    @property
    def mixture(self) -> Mixture | None:
        return Mixture(self.components, self.shares) if self.components and self.shares is not None else None

    def unchanged(self) -> dict[str, Any]:
        """The attributes that a posterior takes unchanged from the file."""
        names = "bijection log_weights chains losses seconds gradient_evaluations value_evaluations num_skipped reason"
        return {name: getattr(self, name) for name in names.split()}

    def require_coherent(self) -> None:
        """Raise a ValueError if the parts do not fit together."""
        dim = sum(int(np.prod(shape)) for shape in self.shapes.values())
        bijection = self.bijection
        if not isinstance(bijection, Chain) or bijection.shape != (dim,) or bijection.cond_shape is not None:
            raise ValueError(f"expected a Chain of shape {(dim,)} for the latent sites {self.shapes}")
        if self.log_weights.ndim != 1 or len(self.log_weights) < _LEAST_WEIGHTS:
            raise ValueError(f"expected at least {_LEAST_WEIGHTS} weights, got the shape {self.log_weights.shape}")
        if not 0.0 <= self.beyond <= 1.0:
            raise ValueError(f"expected a share beyond every draw in [0, 1], got {self.beyond}")
        if self.chains is not None and self.chains.x.shape != (*self.chains.log_density.shape, dim):
            raise ValueError(f"expected chains of vectors of shape {(dim,)}, got {self.chains.x.shape}")
        if (self.components is None) != (self.shares is None):
            raise ValueError("expected components with their shares, or neither")
        if self.components is not None and self.shares is not None:
            _require_mixture(self.components, self.shares, dim)
        if self.points.shape[1:] != (dim,) or self.log_densities.shape != self.points.shape[:1]:
            raise ValueError("expected a log density for each point")
        if self.sites is not None and StoredSites(self.sites, {}).shapes != self.shapes:
            raise ValueError(f"expected sites with the unconstrained shapes {self.shapes}, got {self.sites}")
        event = jax.ShapeDtypeStruct((dim,), jnp.result_type(float))
        for method in (bijection.transform_and_log_det, bijection.inverse_and_log_det):
            value, log_det = jax.eval_shape(method, event)
            if value.shape != (dim,) or log_det.shape != ():
                raise ValueError(f"expected a bijection to vectors of shape {(dim,)}, got {value.shape}")

    def require_fitted_to(self, target: Target) -> None:
        """Raise a ValueError if a model's arguments, by fingerprint, or its log densities are not those of the fit."""
        if not self.fingerprint.is_of(target.args, target.kwargs):
            raise ValueError(
                "expected the model and data that were fitted, got other arguments: their fingerprint differs. "
                "Give the same arguments, in the same order and containers, or fit the new data"
            )
        got = _log_densities(target, jnp.asarray(self.points))
        coarser = max(np.finfo(self.log_densities.dtype).eps, np.finfo(got.dtype).eps)
        tolerance = _ULPS * coarser * np.maximum(1, np.abs(self.log_densities))
        with np.errstate(invalid="ignore"):
            equal = (self.log_densities == got) | (np.abs(self.log_densities - got) <= tolerance)
        if not np.all(equal | (np.isnan(self.log_densities) & np.isnan(got))):
            raise ValueError(
                f"expected the model and data that were fitted, log densities {self.log_densities}, got {got}"
            )
        if self.fingerprint.unknown:
            warnings.warn(
                f"the arguments {', '.join(self.fingerprint.unknown)} are not numbers, so their content has no "
                "fingerprint: only the log density shows whether they are those of the fit",
                UserWarning,
                stacklevel=3,
            )


class StoredSites:
    """A stand-in for a `Target`: the latent sites of a fit, without the model's density."""

    def __init__(self, sites: Sites, free_entries: dict[str, int]):
        self.args: tuple = ()
        self.kwargs: dict[str, Any] = {}
        self.free_entries = free_entries
        self._sites = sites
        self._transform = SitesTransform(sites)
        self.site_shapes = sites.shapes
        self.shapes = self._transform.unconstrained_shapes()
        self.dim = sum(int(np.prod(shape)) for shape in self.shapes.values())
        angles = [np.full(int(np.prod(self.shapes[k])), is_on_line(v)) for k, v in sites.supports.items()]
        self.coordinates = Coordinates.plain(self.dim)._replace(periodic=np.concatenate(angles))
        self.rows = None

    def unchanged_fingerprint(self) -> Fingerprint:
        """The fingerprint of no arguments."""
        return fingerprint((), {})

    def log_density(self, x: Float[Array, " dim"]) -> Scalar:
        """NaN, because the density is unknown: the weights are unknown too, and resampling treats all draws equally."""
        return jnp.full((), jnp.nan, x.dtype)

    def of_one_period(self, centre: Float[Array, " dim"]) -> "StoredSites":
        """Itself: its density is unknown."""
        return self

    def constrain(self, x: Float[Array, " dim"]) -> dict[str, Array]:
        """The latent sites' values at `x`."""
        return self._sites.unpack(self._transform(x))

    def unconstrain(self, sites: Mapping[str, ArrayLike]) -> Float[Array, " dim"]:
        """The vector `x` of latent sites' values."""
        return self._transform.inverse(self._sites.pack(sites))

    def log_det(self, x: Float[Array, " dim"]) -> Scalar:
        """`log |det dsites/dx|` of the constraints at `x`."""
        return self._transform.log_abs_det_jacobian(x, self._transform(x))

    def supports(self) -> dict[str, constraints.Constraint]:
        """The support of every latent site."""
        return self._sites.supports


def without_model(*args: Any, **kwargs: Any) -> NoReturn:
    """A stand-in for the model of a posterior that was loaded without it."""
    raise ValueError(
        "expected a posterior with its model, got one that was loaded without: give it the model and its arguments, "
        "FlowPosterior.load(path, model, *args)"
    )


def target_of(fit: StoredFit, model: Callable, args: tuple, kwargs: dict[str, Any]) -> Target | StoredSites:
    """The model as a density, or its stand-in.

    Raises:
        ValueError: if the model has other latent sites. Without a model: if arguments are given, or the sites' supports
            are unknown.
    """
    if model is without_model:
        if args or kwargs:
            raise ValueError("model expected the model of these arguments, got None: give both or neither")
        if fit.sites is None:
            raise ValueError(
                "expected latent sites with independent supports to load a fit without its model, got "
                f"others of {list(fit.shapes)}: give the model too, FlowPosterior.load(path, model, *args)"
            )
        return StoredSites(fit.sites, fit.free_entries)
    target = Target(with_angles_on_line(model), jax.random.key(0), args, kwargs)
    if fit.shapes != target.shapes:
        raise ValueError(f"expected the model that was fitted, with sites {fit.shapes}, got one with {target.shapes}")
    return target.of_one_period(centre_of(fit.bijection))


def _in_files(mixture: Mixture | None) -> tuple[tuple[_Stored, ...] | None, np.ndarray | None]:
    """Components and shares of a mixture; None if it contains a flow, whose functions a file cannot store."""
    if mixture is None:
        return None, None
    components = tuple(part for part in mixture.components if isinstance(part, _Stored))
    return (components, mixture.shares) if len(components) == len(mixture.components) else (None, None)


def _require_mixture(components: tuple[_Stored, ...], shares: Float[np.ndarray, " components"], dim: int) -> None:
    """Raise a ValueError if a mixture does not have vectors of this size."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((components, shares))]
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        raise ValueError("expected a mixture of finite numbers")
    if shares.shape != (len(components),) or (shares < 0).any() or not np.isclose(shares.sum(), 1.0):
        raise ValueError(f"expected shares of {len(components)} components, got {shares}")
    for component in components:
        component.require_coherent(dim)
        x = component.draw(np.random.default_rng(0), 2)
        if x.shape != (2, dim) or not np.isfinite(component.log_prob(x)).all():
            raise ValueError(f"expected components of vectors of shape {(dim,)}, got draws of shape {x.shape}")


def _refusal(posterior: Result) -> str:
    """Why the fit is not certified by the default settings, as far as is known; empty if it is."""
    if not posterior.certificate.certified:
        return posterior.certificate.why
    loosened = posterior._settings.loosened()
    if loosened:
        return f"it was certified by looser settings than the default: {loosened}"
    searched = all(check.run for check in posterior.certificate.checks if check.name == "a search elsewhere")
    return "" if searched else 'it was certified by its weights alone: verify="weights"'


def _sites_of(target: Target | StoredSites) -> Sites | None:
    try:
        return Sites(target.site_shapes, target.supports())
    except ValueError:  # a support depends on the values of other sites
        return None


def _log_densities(target: Target | StoredSites, points: Float[Array, "points dim"]) -> Float[np.ndarray, " points"]:
    with jax.default_matmul_precision("highest"):  # otherwise a GPU has ten bits in a product
        return np.asarray(jax.vmap(target.log_density)(points))
