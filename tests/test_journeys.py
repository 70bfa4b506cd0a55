"""What a new user does with the README and the site alone, as scripts, whose answers are known."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import halfnorm, norm

ROOT = Path(__file__).parents[1]
JOURNEYS = Path(__file__).parent / "journeys"


def run(name: str, *arguments: Path) -> dict[str, Any]:
    """The names that a script leaves behind, as a reader's own program would run it."""
    before, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        return runpy.run_path(str(JOURNEYS / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


def moments(log_density, first, second):
    """Means and standard deviations of two coordinates, by a sum over a grid."""
    values = log_density(first[:, None], second[None])
    weights = np.exp(values - values.max())
    weights /= weights.sum()
    means = (weights.sum(1) @ first, weights.sum(0) @ second)
    squares = (weights.sum(1) @ first**2, weights.sum(0) @ second**2)
    return np.array(means), np.sqrt(np.array(squares) - np.square(means))


def check(draws, means, sds):
    """Means within four standard errors, standard deviations within as many; half of the draws may be repeats."""
    effective = len(draws[0]) / 2
    for values, mean, sd in zip(draws, means, sds):
        assert np.mean(values) == pytest.approx(mean, abs=4 * sd / np.sqrt(effective))
        assert np.std(values) == pytest.approx(sd, rel=8 / np.sqrt(effective))


@pytest.mark.slow
def test_from_a_table_to_a_certified_posterior_and_back_from_its_file(tmp_path):
    names = run("hierarchical", tmp_path)
    assert names["posterior"].certified
    table, noise = names["table"], names["NOISE"]
    of_farm = table.groupby("farm")["tons"].mean().to_numpy()

    def log_density(mean, spread):
        sd = np.sqrt(spread**2 + noise**2 / 8)[..., None]
        return norm.logpdf(of_farm, mean[..., None], sd).sum(-1) + norm.logpdf(mean, 5, 2) + halfnorm.logpdf(spread)

    means, sds = moments(log_density, np.linspace(0, 10, 400), np.linspace(1e-3, 4, 400))
    first = dict(np.load(tmp_path / "draws.npz"))
    check((first["mean"], first["spread"]), means, sds)
    # a farm's own mean has the error 0.5 / sqrt(8) and the prior moves it little
    np.testing.assert_allclose(first["predicted"].mean(0), of_farm[[0, 3]], atol=0.15)
    np.testing.assert_allclose(first["predicted"].std(0), np.hypot(noise, noise / np.sqrt(8)), rtol=0.05)
    (tmp_path / "draws.npz").unlink()
    subprocess.run([sys.executable, JOURNEYS / "hierarchical.py", tmp_path], check=True, cwd=ROOT, timeout=300)
    check([dict(np.load(tmp_path / "draws.npz"))[name] for name in ("mean", "spread")], means, sds)


@pytest.mark.slow
@pytest.mark.optimized
def test_from_a_table_to_a_density(tmp_path, capsys):
    names = run("density", tmp_path)
    assert f"whole rows: {names['joint'].fit.held_out}\n\ndiscrete columns:\nheld-out" in capsys.readouterr().out
    draws, of_three, at_three = names["draws"], names["of_three"], names["at_three"]
    assert draws["visits"].dtype.kind == "i"
    assert draws["visits"].mean() == pytest.approx(3.0, abs=0.15)
    assert draws["visits"].var() == pytest.approx(3.0, rel=0.15)
    assert draws["share"].between(0, 1).all()
    assert draws["share"].mean() == pytest.approx(1 / 3, abs=0.02)
    for incomes in (of_three["income"], at_three["income"]):
        assert np.log(incomes).mean() == pytest.approx(1.9, abs=0.06)
        assert np.log(incomes).std() == pytest.approx(0.4, rel=0.12)
    assert names["score"] == pytest.approx(float(np.mean(names["joint"].log_prob(names["table"]))), rel=1e-4)


def test_from_a_refused_fit_to_a_right_posterior():
    with pytest.warns(UserWarning, match="the fit is not certified"):
        names = run("refused")
    why = names["refused"].why
    assert "the posterior is improper: the marginal density of log_spread does not fall" in why
    (page,) = re.findall(r"What to try: (\S+)", why)
    (section,) = re.findall(r"\n## The posterior is improper\n(.*?)\n## ", (ROOT / page).read_text(), flags=re.DOTALL)
    assert "Give it a proper prior" in " ".join(section.split())
    assert names["posterior"].certified
    measured = names["measured"]

    def log_density(mean, log_spread):
        sd = np.sqrt(np.exp(2 * log_spread) + names["ERROR"] ** 2)[..., None]
        prior = norm.logpdf(mean, 0, 5) + norm.logpdf(log_spread)
        return norm.logpdf(measured, mean[..., None], sd).sum(-1) + prior

    means, sds = moments(log_density, np.linspace(-6, 8, 500), np.linspace(-6, 4, 500))
    check((names["draws"]["mean"], names["draws"]["log_spread"]), means, sds)
