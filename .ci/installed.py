"""Tries an installed package, away from the checkout: typed, of the version it says, and fit for a first posterior."""

import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import jax
import numpyro
import numpyro.distributions as dist

import numpyro_flows
from numpyro_flows import FlowDistribution, FlowVI, flows

package = Path(numpyro_flows.__file__).parent
assert "site-packages" in package.parts, f"expected an installed package, got {package}"
assert (package / "py.typed").exists()


def banana():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x**2, 0.5))


posterior = FlowVI(banana, progress_bar=False).run(jax.random.key(0))
assert posterior.certified, posterior.why
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "prior"
    FlowDistribution(flows.maf(jax.random.key(1), 2)).save(path)
    assert FlowDistribution.load(path).sample(jax.random.key(2), (10,)).shape == (10, 2)
versions = ", ".join(f"{name} {version(name)}" for name in ("numpyro_flows", "numpyro", "jax", "equinox", "arviz"))
print(f"works: Python {platform.python_version()}, {versions}")
