"""Which round of training is kept, and when training ends; rounds and verdicts are scripted."""

from types import SimpleNamespace

import numpy as np
import pytest

from numpyro_flows.flow_stage import FlowFit, FlowStage
from numpyro_flows.recipe import RECIPE
from numpyro_flows.sampling import certify
from numpyro_flows.stages import Clock

GOOD = certify(np.random.default_rng(0).normal(scale=0.3, size=10_000))  # certified, short of the target ESS


def verdict(ess, khat, elbo):
    certified = khat < RECIPE.max_khat
    return GOOD._replace(certified=certified, why="" if certified else "bad", ess=ess, khat=khat, elbo=elbo)


def run(monkeypatch, start, *rounds, stopped=""):
    verdicts = iter(rounds)
    make = SimpleNamespace(wait=lambda: None)
    stages = SimpleNamespace(make=lambda *args: 0, static=None, draw=None, draw_coarsely=None)
    stages.make.wait = make.wait
    stage = FlowStage(RECIPE, stages, None, iter(()), Clock(), False)  # pyright: ignore

    def train(arrays, num_steps, peak, forward):
        stage.num_steps += num_steps
        stage.stopped = stopped
        return arrays

    monkeypatch.setattr(stage, "_round", train)
    monkeypatch.setattr(stage, "_judge", lambda arrays: (next(verdicts), np.zeros(1)))
    gaussian = SimpleNamespace(loc=0, scale=0)
    return stage.run(gaussian, FlowFit(None, start, np.zeros(1)), 0)  # pyright: ignore


def test_a_certified_round_replaces_one_that_is_not(monkeypatch):
    """Also where its ESS and ELBO are a little lower, and training ends with it."""
    fit = run(monkeypatch, verdict(0.94, 0.8, -1.00), verdict(0.93, 0.5, -1.01))
    assert fit.certificate.certified
    assert fit.certificate.khat == 0.5


def test_a_worse_round_is_undone(monkeypatch):
    fit = run(monkeypatch, verdict(0.6, 0.69, -1.0), verdict(0.5, 0.69, -2.0), verdict(0.97, 0.4, -0.5))
    assert fit.certificate.ess == 0.97


@pytest.mark.parametrize("reason", ["interrupted", "stopped by an error: out of memory"])
def test_the_reason_of_an_early_end_stays(monkeypatch, reason):
    fit = run(monkeypatch, verdict(0.3, 0.9, -1.0), verdict(0.31, 0.9, -1.0), stopped=reason)
    assert f"training was {reason}" in fit.certificate.why
