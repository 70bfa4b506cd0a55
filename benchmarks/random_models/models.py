"""Small NumPyro models as users write them, drawn at random from a seed, with data drawn from the model's own prior."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import seed, trace
from numpyro.infer import Predictive

Predictor = Callable[[jax.Array, jax.Array], jax.Array]  # of covariates and group numbers

DIMS = (2, 15)
LARGEST = 1e4  # of a simulated value
SMALLEST = 1e-4  # of a simulated positive value
DATA_SETS = 20  # from the prior, of which the first within these bounds is taken
LIKELIHOODS = ("Normal", "StudentT", "Poisson", "Bernoulli", "NegativeBinomial", "Gamma", "Weibull")


def site(*args: Any, **kwargs: Any) -> jax.Array:
    """`numpyro.sample`, whose type is wider."""
    return jnp.asarray(numpyro.sample(*args, **kwargs))


class RandomModel(NamedTuple):
    """A model with its arguments; `structure` says in words what it is."""

    structure: str
    dim: int
    model: Callable
    args: tuple


def random_model(number: int) -> RandomModel:
    """The model of a seed: others are drawn until the number of dimensions is within bounds."""
    rng = np.random.default_rng(number)
    while True:
        rows, groups, covariates = int(rng.integers(10, 201)), int(rng.integers(3, 9)), int(rng.integers(1, 6))
        name = str(rng.choice(list(STRUCTURES)))
        likelihood = str(rng.choice(LIKELIHOODS))
        positive_data = name != "rates" and likelihood in ("Gamma", "Weibull")
        if name == "rates":
            groups = min(groups, rows // 3)
            body, text = rates(rng, groups)
        else:
            predictor, text = STRUCTURES[name](rng, covariates, groups)
            body, outcome = observed(rng, likelihood, predictor)
            text = f"{text}; {outcome}"
        x = rng.standard_normal((rows, max(covariates, 2) if name == "mixing" else covariates))
        group = np.concatenate([np.arange(groups), rng.integers(groups, size=rows)])[:rows]
        dim = dimensions(body, x, group)
        if DIMS[0] <= dim <= DIMS[1]:
            y = simulated(body, number, x, group, smallest=SMALLEST if positive_data else -LARGEST)
            return RandomModel(f"{text}; {rows} rows", dim, body, (x, group, y))


def dimensions(model: Callable, *args: np.ndarray) -> int:
    """Number of unconstrained coordinates."""
    num = 0

    def count() -> None:
        nonlocal num
        for site in trace(seed(model, jax.random.key(0))).get_trace(*args).values():
            if site["type"] == "sample" and site["name"] != "y":
                num += int(np.prod(dist.biject_to(site["fn"].support).inverse_shape(jnp.shape(site["value"]))))

    jax.eval_shape(count)
    return num


def simulated(model: Callable, number: int, *args: np.ndarray, smallest: float) -> np.ndarray:
    """Data of one draw from the prior, clipped where nothing else is found."""

    def draw(key: jax.Array) -> jax.Array:
        return Predictive(model, num_samples=DATA_SETS)(key, *args)["y"]

    data = np.asarray(jax.jit(draw)(jax.random.key(number)))
    clipped = np.clip(np.nan_to_num(data, nan=1.0), smallest, LARGEST)
    return clipped[np.argmax((clipped == data).all(1))].astype(data.dtype)


def location(rng: np.random.Generator, scale: float = 1.0) -> dist.Distribution:
    """A prior on the whole line, or on an interval around zero."""
    choices = (dist.Normal(0.0, scale), dist.StudentT(float(rng.integers(3, 8)), 0.0, scale))
    return (*choices, dist.Uniform(-3.0 * scale, 3.0 * scale))[rng.choice(3, p=[0.5, 0.3, 0.2])]


def positive(rng: np.random.Generator) -> dist.Distribution:
    """A prior of a scale or a shape."""
    choices = (dist.HalfCauchy(1.0), dist.Gamma(2.0, 2.0), dist.LogNormal(0.0, 0.7), dist.Uniform(0.0, 5.0))
    return choices[rng.choice(4)]


def described(*priors: dist.Distribution) -> str:
    return ", ".join(type(prior).__name__ for prior in priors)


def regression(rng: np.random.Generator, covariates: int, groups: int) -> tuple[Predictor, str]:
    intercept, slopes = location(rng), location(rng, float(rng.choice([0.5, 1.0])))

    def predictor(x: jax.Array, group: jax.Array) -> jax.Array:
        a = site("a", intercept)
        with numpyro.plate("covariates", covariates):
            beta = site("beta", slopes)
        return a + x @ beta

    return predictor, f"regression on {covariates} ({described(intercept, slopes)})"


def group_effects(rng: np.random.Generator, covariates: int, groups: int, centred: bool) -> tuple[Predictor, str]:
    mean, slopes, scale = location(rng), location(rng), positive(rng)
    heavy = rng.random() < 0.25  # effects are Student-t in place of normal
    covariates = int(min(covariates, rng.integers(0, 3)))

    def effects(loc: jax.typing.ArrayLike, size: jax.typing.ArrayLike) -> dist.Distribution:
        return dist.StudentT(4.0, loc, size) if heavy else dist.Normal(loc, size)

    def predictor(x: jax.Array, group: jax.Array) -> jax.Array:
        mu, tau = site("mu", mean), site("tau", scale)
        with numpyro.plate("groups", groups):
            if centred:
                alpha = site("alpha", effects(mu, tau))
            else:
                z = site("z", effects(0.0, 1.0))
                alpha = jnp.asarray(numpyro.deterministic("alpha", mu + tau * z))
        if covariates == 0:
            return alpha[group]
        with numpyro.plate("covariates", covariates):
            beta = site("beta", slopes)
        return alpha[group] + x[:, :covariates] @ beta

    kind = f"{groups} {'Student-t' if heavy else 'normal'} {'' if centred else 'non-'}centred groups"
    return predictor, f"{kind}, {covariates} covariates ({described(mean, scale)})"


def centred_groups(rng: np.random.Generator, covariates: int, groups: int) -> tuple[Predictor, str]:
    return group_effects(rng, covariates, groups, centred=True)


def non_centred_groups(rng: np.random.Generator, covariates: int, groups: int) -> tuple[Predictor, str]:
    return group_effects(rng, covariates, groups, centred=False)


def mixing(rng: np.random.Generator, covariates: int, groups: int) -> tuple[Predictor, str]:
    """An index of covariates: weights on a simplex, or one weight between two."""
    covariates = max(covariates, 2)
    concentration = float(rng.choice([0.7, 1.0, 3.0]))
    intercept, size = location(rng), location(rng) if rng.random() < 0.5 else positive(rng)

    def predictor(x: jax.Array, group: jax.Array) -> jax.Array:
        a, b = site("a", intercept), site("b", size)
        if covariates == 2:
            share = site("share", dist.Beta(concentration, 2.0))
            weights = numpyro.deterministic("weights", jnp.stack([share, 1 - share]))
        else:
            weights = site("weights", dist.Dirichlet(jnp.full(covariates, concentration)))
        return a + b * (x[:, :covariates] @ weights)

    weights = "a Beta weight" if covariates == 2 else f"Dirichlet weights of {covariates}"
    return predictor, f"{weights}, concentration {concentration} ({described(intercept, size)})"


def correlated(rng: np.random.Generator, covariates: int, groups: int) -> tuple[Predictor, str]:
    """Intercepts and slopes of groups that are correlated, non-centred."""
    effects = 3 if covariates > 3 and groups < 4 else 2
    groups = min(groups, 2 if effects == 3 else 4)
    mean, scale, eta = location(rng), positive(rng), float(rng.choice([1.0, 2.0]))

    def predictor(x: jax.Array, group: jax.Array) -> jax.Array:
        with numpyro.plate("effects", effects):
            mu = site("mu", mean)
            tau = site("tau", scale)
        cholesky = site("L", dist.LKJCholesky(effects, eta))
        numpyro.deterministic("correlation", cholesky @ cholesky.T)
        with numpyro.plate("groups", groups):
            z = site("z", dist.Normal(0.0, 1.0).expand([effects]).to_event(1))
        b = jnp.asarray(numpyro.deterministic("b", mu + (z * tau) @ cholesky.T))
        covariate = jnp.concatenate([jnp.ones((len(x), 1)), x[:, : effects - 1]], axis=1)
        return (b[group % groups] * covariate).sum(1)

    return predictor, f"{groups} groups with {effects} correlated effects ({described(mean, scale)}, LKJ {eta})"


def observed(rng: np.random.Generator, likelihood: str, predictor: Predictor) -> tuple[Callable, str]:
    """A model with a likelihood around a predictor, by a log link where the outcome is positive."""
    prior, degrees = positive(rng), bool(rng.random() < 0.5)
    scaled = likelihood not in ("Poisson", "Bernoulli")

    def model(x: jax.Array, group: jax.Array, y: jax.Array | None = None) -> None:
        eta = predictor(x, group)
        s = site("sigma" if likelihood in ("Normal", "StudentT") else "shape", prior) if scaled else 1.0
        if likelihood == "StudentT":
            nu = site("nu", dist.Gamma(2.0, 0.1)) if degrees else 4.0
            outcome = dist.StudentT(nu, eta, s)
        else:
            outcome = {
                "Normal": lambda: dist.Normal(eta, s),
                "Poisson": lambda: dist.Poisson(jnp.exp(eta)),
                "Bernoulli": lambda: dist.Bernoulli(logits=eta),
                "NegativeBinomial": lambda: dist.NegativeBinomial2(jnp.exp(eta), s),
                "Gamma": lambda: dist.Gamma(s, s / jnp.exp(eta)),
                "Weibull": lambda: dist.Weibull(jnp.exp(eta), s),
            }[likelihood]()
        with numpyro.plate("rows", len(x)):
            site("y", outcome, obs=y)

    return model, f"{likelihood} ({described(prior)})" if scaled else likelihood


def rates(rng: np.random.Generator, groups: int) -> tuple[Callable, str]:
    """A probability or a rate for each group, with a common prior, whose parameters may be unknown as well."""
    binary, hyper, prior = bool(rng.random() < 0.5), bool(rng.random() < 0.5), positive(rng)

    def model(x: jax.Array, group: jax.Array, y: jax.Array | None = None) -> None:
        if hyper:
            center = site("center", dist.Beta(2.0, 2.0) if binary else dist.LogNormal(0.0, 1.0))
            size = site("size", prior)
        else:
            center, size = 0.4, 2.0
        with numpyro.plate("groups", groups):
            if binary:
                rate = site("rate", dist.Beta(center * size, (1 - center) * size))
            else:
                rate = site("rate", dist.Gamma(size, size / center))
        with numpyro.plate("rows", len(x)):
            site("y", dist.Bernoulli(rate[group]) if binary else dist.Poisson(rate[group]), obs=y)

    kind = "Beta probabilities; Bernoulli" if binary else "Gamma rates; Poisson"
    return model, f"{groups} {kind}" + (f"; their mean and size unknown ({described(prior)})" if hyper else "")


STRUCTURES = {
    "regression": regression,
    "centred": centred_groups,
    "non-centred": non_centred_groups,
    "mixing": mixing,
    "correlated": correlated,
    "rates": rates,
}
