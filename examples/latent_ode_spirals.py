"""Spirals that are observed at irregular times: reconstructed, followed beyond the window, and drawn anew.

    uv run examples/latent_ode_spirals.py

250 series, 30 noisy observations of each; 50 are held out. Writes latent_ode_spirals.png.
"""

from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from scipy.stats import kurtosis, skew

from numpyro_flows import fit_latent_ode

WINDOW, END, NOISE = (0.0, 6.0), 9.0, 0.2


class Spirals(NamedTuple):
    """Observed in the window, and where the spirals truly are at these times and at later ones."""

    times: Float[np.ndarray, "num 30"]
    values: Float[np.ndarray, "num 30 2"]
    truth: Float[np.ndarray, "num 30 2"]
    later: Float[np.ndarray, "num 30"]
    truth_later: Float[np.ndarray, "num 30 2"]


def spirals(seed: int, num: int) -> Spirals:
    """Half of them turn clockwise; each starts at any angle and at a distance from 0.5 to 2."""
    rng = np.random.default_rng(seed)
    times, later = (np.sort(rng.uniform(*ends, (num, 30))) for ends in (WINDOW, (WINDOW[1], END)))
    direction = np.where(np.arange(num) % 2, -1, 1)[:, None]
    angle, distance = rng.uniform(0, 2 * np.pi, (num, 1)), rng.uniform(0.5, 2, (num, 1))

    def place(times: np.ndarray) -> np.ndarray:
        turned = angle + direction * times
        return (distance + times / 4)[..., None] * np.stack([np.cos(turned), np.sin(turned)], -1)

    truth = place(times)
    return Spirals(times, truth + NOISE * rng.normal(size=truth.shape), truth, later, place(later))


def rmse(a: jax.Array, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((np.asarray(a) - b) ** 2)))


def main() -> None:
    data = spirals(0, 250)
    train, held_out = (Spirals(*(part[some] for part in data)) for some in (slice(200), slice(200, 250)))
    fit = fit_latent_ode(jax.random.key(0), train.times, train.values, window=WINDOW)
    latent_ode = fit.latent_ode
    print(f"{fit.why} in {fit.seconds:.0f} s; noise {latent_ode.noise}, solver error {fit.solver_error:.3f} of it")

    seen = held_out.times, held_out.values
    error = rmse(latent_ode.predict(*seen), held_out.values)
    later = rmse(latent_ode.predict(*seen, at=held_out.later), held_out.truth_later)
    print(f"held-out error: {error / NOISE:.2f} noise sds; beyond the window {later / NOISE:.2f} from the truth")
    draws = latent_ode.encode(data.times, data.values).sample(jax.random.key(1), (20,))
    z0 = np.asarray(draws).reshape(-1, latent_ode.latent_dim)
    for name, points in (("z0", z0), ("in the flow's base", np.asarray(latent_ode.to_base(z0)))):
        print(f"aggregate posterior, {name}: skew {skew(points).round(2)}, excess kurtosis {kurtosis(points).round(2)}")

    grid = np.linspace(*WINDOW, 100), np.linspace(WINDOW[1], END, 50)
    figure, axes = plt.subplots(2, 3, figsize=(10, 6.6), sharex=True, sharey=True, layout="constrained")
    inside, beyond = (np.asarray(latent_ode.predict(*seen, at=at)) for at in grid)
    for i, axis in enumerate(axes.flat[:5]):
        axis.plot(*held_out.values[i].T, ".", color="0.6", label="observed")
        axis.plot(*held_out.truth_later[i].T, "x", color="0.3", markersize=4, label="truth, not observed")
        axis.plot(*inside[i].T, color="C0", label="reconstruction")
        axis.plot(*beyond[i].T, "--", color="C1", label="extrapolation")
        axis.set_title(f"held-out series {i + 1}")
    for path in np.asarray(latent_ode.sample(jax.random.key(2), 8, grid[0])):
        axes[1, 2].plot(*path.T, linewidth=1)
    axes[1, 2].set_title("8 series drawn from the prior")
    for axis in axes.flat:
        axis.set(aspect="equal")
        axis.label_outer()
    figure.supxlabel("first coordinate")
    figure.supylabel("second coordinate")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig("latent_ode_spirals.png", dpi=120)
    print("picture: latent_ode_spirals.png")


if __name__ == "__main__":
    main()
