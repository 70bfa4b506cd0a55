"""Several fits of one posterior."""

import jax
import numpy as np
import pytest

from numpyro_flows import FlowVI
from numpyro_flows.inference.several import run_several
from tests.example_models import DATA, conjugate, conjugate_posterior, posterior_of


def fits_of(*shifts, why=""):
    """Fits made by hand, with made-up weights in their certificates, of data shifted by so much."""
    made = iter(shifts)

    def run(key):
        data = DATA + next(made)
        return posterior_of(conjugate, data, loc=float(data.sum() / (1 / 4 + data.size)), why=why)

    return run_several(run, jax.random.key(0), len(shifts), (), {})


def test_what_several_fits_say(capsys):
    fits = fits_of(0.0, 0.0)
    assert fits.certified
    assert fits.evidence_gap == 0.0  # their weights are the same, made-up ones
    assert fits.rhat.max() < 1.01
    fits.print_summary()
    shown = capsys.readouterr().out
    assert shown.startswith("SeveralFits(2 of 2 certified, largest r-hat ")
    assert "the largest gap is 0.0 standard errors" in shown

    apart = fits_of(0.0, 1.0, why="a reason")
    assert not apart.certified
    assert apart.rhat.max() > 1.1
    apart.print_summary()
    assert "fit 1 is not certified: a reason" in capsys.readouterr().out


def test_arguments():
    flow_vi = FlowVI(conjugate, progress_bar=False)
    with pytest.raises(ValueError, match="num expected at least 2, got 1"):
        flow_vi.run_several(jax.random.key(0), 1, DATA)
    with pytest.raises(TypeError, match="rng_key expected"):
        flow_vi.run_several(0, 2, DATA)  # pyright: ignore[reportArgumentType]


def test_a_checkpoint_is_of_one_fit(tmp_path):
    with pytest.raises(ValueError, match="checkpoint expected None for several fits"):
        FlowVI(conjugate, checkpoint=tmp_path / "fit").run_several(jax.random.key(0), 2, DATA)


@pytest.mark.slow
@pytest.mark.parametrize("key", [jax.random.key(1), jax.random.PRNGKey(1)], ids=["typed", "raw"])
def test_fits_agree_with_each_other_and_the_exact_evidence(key):
    fits = FlowVI(conjugate, progress_bar=False).run_several(key, 3, DATA)
    assert fits.certified
    assert len({posterior.log_evidence for posterior in fits.posteriors}) == 3
    np.testing.assert_allclose(fits.log_evidence, conjugate_posterior()[2], atol=1e-3)
    assert fits.evidence_gap < 5.0
    assert fits.rhat.max() < 1.01
