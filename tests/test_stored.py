"""Saved posteriors: judged anew, tied to their data, and of use without them. The fits are made by hand, untrained."""

import copy
import pickle
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpyro.distributions import constraints

from numpyro_flows import FlowDistribution, FlowPosterior
from numpyro_flows.bijections import Affine
from numpyro_flows.density.result import DensityFit, Score
from numpyro_flows.density.solver_check import SolverCheck
from numpyro_flows.files.container import checksum_of, pack, unpack
from numpyro_flows.files.tree import save_tree
from numpyro_flows.inference.fingerprint import fingerprint
from numpyro_flows.training.reasons import Reason
from tests.example_models import posterior_of

Y = np.array([0.3, 1.0, 2.0])
KEY = jax.random.key(1)


def normal(y, options=None):
    mu = jnp.asarray(numpyro.sample("mu", dist.Normal(0.0, 10.0)))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0).expand([2]).to_event(1))
    numpyro.deterministic("double", 2 * jnp.asarray(mu))
    numpyro.sample("y", dist.Normal(mu, jnp.sum(sigma)), obs=y)


def nested(y):
    """A support that depends on another site."""
    top = numpyro.sample("top", dist.HalfNormal(1.0))
    numpyro.sample("below", dist.Uniform(0.0, top))
    numpyro.sample("y", dist.Normal(top, 1.0), obs=y)


@pytest.fixture(scope="module")
def posterior() -> FlowPosterior:
    return posterior_of(normal, Y)


@pytest.fixture
def path(posterior, tmp_path):
    posterior.save(tmp_path / "fit")
    return tmp_path / "fit"


def edited(path, edit) -> None:
    kind, structure, arrays = unpack(path.read_bytes())
    edit(structure["fields"])
    path.write_bytes(pack(kind, structure, arrays))


def test_with_its_model(path, posterior):
    again = FlowPosterior.load(path, normal, Y)
    assert again.certificate == posterior.certificate
    np.testing.assert_array_equal(again.losses, posterior.losses)
    a, b = again.sample(KEY, 20), posterior.sample(KEY, 20)
    assert a.keys() == {"mu", "sigma", "double"}
    for name in b:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5)
    assert again.params.keys() == posterior.params.keys()


def test_without_its_model(path, posterior):
    free = FlowPosterior.load(path)
    draws, own = free.sample(KEY, 50), posterior.sample(KEY, 50, resample=False)
    assert draws.keys() == {"mu", "sigma"}
    assert draws["sigma"].min() > 0
    for name in draws:
        np.testing.assert_allclose(draws[name], own[name], rtol=1e-5)
    np.testing.assert_allclose(free.log_prob(draws), posterior.log_prob(draws), rtol=1e-5, atol=1e-5)
    assert list(free.summary().index) == ["mu", "sigma[0]", "sigma[1]"]
    assert free.certificate == posterior.certificate
    assert "without its model" in free.verdict()
    assert copy.deepcopy(free).sample(KEY, 50).keys() == draws.keys()


NEED_MODEL = {
    "resampling": lambda free: free.sample(KEY, 10, resample=True),
    "weights": lambda free: free.sample_weighted(KEY, 10),
    "ArviZ's groups": lambda free: free.to_datatree(),
    "the guide": lambda free: free.guide,
    "the next prior": lambda free: free.as_prior(),
    "another file": lambda free: free.save("nowhere"),
}


@pytest.mark.parametrize("name", NEED_MODEL)
def test_what_needs_the_model_says_so(name, path):
    with pytest.raises(ValueError, match=r"FlowPosterior.load\(path, model, \*args\)"):
        NEED_MODEL[name](FlowPosterior.load(path))


def test_arguments_without_their_model(path):
    with pytest.raises(ValueError, match="model expected the model of these arguments, got None"):
        FlowPosterior.load(path, None, Y)


@pytest.mark.slow
def test_supports_that_depend_on_other_sites_need_the_model(tmp_path):
    posterior_of(nested, Y).save(tmp_path / "fit")
    assert FlowPosterior.load(tmp_path / "fit", nested, Y).sample(KEY, 5).keys() == {"top", "below"}
    with pytest.raises(ValueError, match=r"independent supports .* \['top', 'below'\]"):
        FlowPosterior.load(tmp_path / "fit")


def test_a_stored_verdict_is_not_believed(tmp_path):
    posterior_of(normal, Y, spread=3.0).save(tmp_path / "bad")
    edited(tmp_path / "bad", lambda fields: fields.update(refused=""))
    assert not FlowPosterior.load(tmp_path / "bad").certified
    why = "a mode that the fit lacks holds about 40%"  # of which the weights know nothing
    posterior_of(normal, Y, why=why).save(tmp_path / "refused")
    again = FlowPosterior.load(tmp_path / "refused")
    assert (again.certified, again.why) == (False, why)


def test_other_data_and_other_models(path):
    for other in (Y + 1e-3, Y[::-1], Y[:2]):
        with pytest.raises(ValueError, match="got other arguments: their fingerprint differs"):
            FlowPosterior.load(path, normal, other)
    assert FlowPosterior.load(path, normal, jnp.asarray(Y)).certified  # the same numbers to JAX
    with pytest.raises(ValueError, match="expected the model that was fitted, with sites"):
        FlowPosterior.load(path, nested, Y)

    def wider(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(mu, jnp.sum(sigma)), obs=y)

    with pytest.raises(ValueError, match="expected the model and data that were fitted, log densities"):
        FlowPosterior.load(path, wider, Y)


LIKE_Y = {
    "float32": Y.astype("float32"),
    "array of JAX": jnp.asarray(Y),
    "view": Y[::-1][::-1],
    "Series": pd.Series(Y),
}
UNLIKE_Y: dict[str, tuple[Any, type[Exception], str]] = {
    "DataFrame": (pd.DataFrame({"y": Y}), ValueError, "got other arguments: their fingerprint differs"),
    "masked": (np.ma.array(Y, mask=[False, True, False]), TypeError, "data of 'y', got a masked array"),
    "big-endian": (Y.astype(">f8"), TypeError, r"data of 'y', got an array of type >f8 .*: pass y.astype\(float\)"),
    "list": (Y.tolist(), TypeError, r"data of 'y', got a list: pass jnp.asarray\(y\)"),
    "objects": (Y.astype(object), TypeError, r"data of 'y', got an array of type object .*: pass y.astype\(float\)"),
    "0-d": (np.array(0.3), ValueError, "got other arguments: their fingerprint differs"),
    "half": (Y.astype("float16"), ValueError, "got other arguments: their fingerprint differs"),
    "function": (normal, ValueError, "got other arguments: their fingerprint differs"),
    "NaN": (Y * np.nan, ValueError, "observed values that are finite, got 3 of 3"),
    "none": (None, ValueError, "expected the model that was fitted, with sites"),
}


@pytest.mark.filterwarnings("ignore:the model gets the DataFrame")
def test_data_of_other_kinds(path):
    """The same numbers, or a sentence about the user's own object."""
    for name, y in LIKE_Y.items():
        assert FlowPosterior.load(path, normal, y).certified, name
    for y, error, message in UNLIKE_Y.values():
        with pytest.raises(error, match=message):
            FlowPosterior.load(path, normal, y)


class Options:
    """An argument that is no number."""


def test_arguments_without_fingerprint_are_named(tmp_path):
    posterior_of(normal, Y, Options()).save(tmp_path / "fit")
    with pytest.warns(UserWarning, match=r"the arguments \[0\]\[1\] \(.*Options\) are not numbers"):
        FlowPosterior.load(tmp_path / "fit", normal, Y, Options())


@pytest.mark.parametrize(
    "other",
    [
        (1, 2.0),
        ([1], 2.0),
        (1, 3.0),
        (1, 2.0, 3),
        ("1", 2.0),
        (1, None),
        (1.0, 2.0),
        (np.ones(1), 2.0),
        ({"a": 1}, 2.0),
    ],
)
def test_fingerprints(other):
    same = other == (1, 2.0) and type(other[0]) is int
    assert fingerprint((1, 2.0), {"b": "x"}).is_of(other, {"b": "x"}) == same
    assert fingerprint((), {"a": Y, "b": KEY}).is_of((), {"b": KEY, "a": Y.copy()})
    assert not fingerprint((), {"a": Y}).is_of((), {"b": Y})


def test_fingerprints_know_double_precision():
    seconds = np.array([1.7e9, 1.7e9 + 1])
    with jax.enable_x64(True):
        double = fingerprint((seconds,), {})
        assert not double.is_of((seconds + 1,), {})
    assert double.is_of((seconds,), {})


MALFORMED = {
    "a certificate": lambda fields: fields.update(certificate={"dict": [["certified", True]]}),
    "no weights": lambda fields: fields.pop("log_weights"),
    "weights that are a number": lambda fields: fields.update(log_weights=0.0),
    "weights of few draws": lambda fields: fields.update(log_weights=fields["losses"]),
    "other shapes": lambda fields: fields.update(shapes={"dict": [["mu", {"tuple": [5]}]]}),
    "a shape that is text": lambda fields: fields.update(shapes={"dict": [["mu", "x"]]}),
    "other sites": lambda fields: fields["sites"]["fields"]["shapes"]["dict"].pop(),
    "a support that is a network": lambda fields: fields["sites"]["fields"]["supports"]["dict"][0].__setitem__(
        1, {"class": "numpyro_flows.networks.MLP", "fields": {"weights": {"tuple": []}, "biases": {"tuple": []}}}
    ),
    "a bijection that is no chain": lambda fields: fields.update(
        bijection=fields["bijection"]["fields"]["bijections"]["tuple"][0]
    ),
    "a chain of another shape": lambda fields: fields["bijection"]["fields"].update(shape={"tuple": [7]}),
    "a prefix that is a number": lambda fields: fields.update(prefix=3),
    "seconds that are text": lambda fields: fields["seconds"]["dict"][0].__setitem__(1, "long"),
    "a model": lambda fields: fields.update(model={"object": "os.system"}),
}


def test_crafted_posteriors(path):
    whole, loaded = path.read_bytes(), []
    for name, edit in MALFORMED.items():
        path.write_bytes(whole)
        edited(path, edit)
        try:
            FlowPosterior.load(path)
            loaded.append(name)
        except ValueError:
            pass
    assert not loaded


def test_arrays_of_other_shapes_than_the_flow_says(path, tmp_path):
    flow = tmp_path / "flow"
    FlowDistribution(Affine(jnp.zeros(3))).save(flow)
    for file, load in ((path, FlowPosterior.load), (flow, FlowDistribution.load)):
        kind, structure, arrays = unpack(file.read_bytes())
        bijection = structure["fields"]["bijection"]
        parts = bijection["fields"].get("bijections", {"tuple": [bijection]})["tuple"]
        loc = parts[-1]["fields"]["loc"]
        arrays[loc["array"]] = np.ones((2, 3), np.float32)
        loc["checksum"] = checksum_of(arrays[loc["array"]])
        file.write_bytes(pack(kind, structure, arrays))
        with pytest.raises(ValueError, match="shape"):
            load(file)


def test_pickle(posterior):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pickle.loads(pickle.dumps(posterior))
    assert again.certificate == posterior.certificate
    np.testing.assert_allclose(again.sample(KEY, 20)["double"], posterior.sample(KEY, 20)["double"], rtol=1e-5)


def test_how_a_flow_was_fitted_is_in_its_file(tmp_path):
    flow = FlowDistribution(Affine(jnp.zeros(2)))
    some, counts = np.array([1.0, 0.5]), np.array([10, 20])
    solver = SolverCheck(float("nan"), 8, lambda: 16.0)
    score = Score(0.5, 0.1)
    ended = ({"training": 1.0}, 0, "all 9 steps", Reason.BUDGET, solver)
    flow.fit = DensityFit(some, some, counts, score, None, *ended, {"gaussian": Score(0.7, 0.2)}, "flow")
    flow.save(tmp_path / "flow")
    again: Any = FlowDistribution.load(tmp_path / "flow").fit
    assert type(again) is DensityFit
    np.testing.assert_array_equal(again.losses, some)
    assert (again.held_out, again.test, again.why) == (score, None, "all 9 steps")
    assert (again.baselines, again.kept) == ({"gaussian": Score(0.7, 0.2)}, "flow")
    assert again.reason == Reason.BUDGET
    again_solver: Any = again.solver
    assert (again_solver.num_steps, again_solver.num_evaluations) == (8, 16.0)


def test_positive_sites_keep_their_support(path):
    supports: Any = FlowPosterior.load(path)._target.supports()
    assert supports["mu"] is constraints.real
    assert supports["sigma"].base_constraint is constraints.positive


def test_a_file_of_something_else(tmp_path):
    save_tree(tmp_path / "file", "FlowPosterior", {"a": 1})
    with pytest.raises(ValueError, match="at the top: expected StoredFit, got"):
        FlowPosterior.load(tmp_path / "file")
