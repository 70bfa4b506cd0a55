"""Private and unstable API of other libraries: two files name it, and each thing that they rely on holds.

A failure below the first section says that a new version of a library has changed: adapt the file that the message
names, and then its test. Users of the package need not see it, as no other file has to change.
"""

import ast
import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.autoguide import AutoContinuous, AutoDiagonalNormal
from numpyro.infer.util import log_density

from numpyro_flows import _jax
from numpyro_flows.modeling import _numpyro
from tests.test_layering import MODULES, PACKAGE

PLACES = {PACKAGE / "_jax.py", PACKAGE / "modeling" / "_numpyro.py"}
# What is named in saved files: data, which `tests/test_files.py` compares with what is installed.
FILE_NAMES = {PACKAGE / "files" / "table.py", PACKAGE / "files" / "numpyro_fields.py"}
LIBRARIES = {"numpyro", "jax", "jaxlib", "equinox", "diffrax", "lineax", "optimistix"}
# Without underscores, but without promises either; `jax.core.Tracer` is documented.
UNSTABLE = re.compile(
    r"(jax\.(core(?!\.Tracer)|extend|experimental|interpreters|lib)|equinox\.internal"
    r"|numpyro\.distributions\.(batch_util|util))\b"
)
OF_NAMED_TUPLES = {"_replace", "_asdict", "_fields", "_make"}


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[A-Za-z]\w*", name) is not None


def is_unstable(dotted: str) -> bool:
    top, *rest = dotted.split(".")
    return top in LIBRARIES and (any(map(is_private, rest)) or UNSTABLE.match(dotted) is not None)


def dotted(node: ast.AST) -> str | None:
    """`a.b.c` of names and attributes alone; `ast.unparse` of all that there is takes seconds."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)) is not None:
        return f"{owner}.{node.attr}"
    return None


def dotted_names(tree: ast.AST) -> Iterator[str]:
    """All that is imported, or reached by attributes of what is, and strings that name modules."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        else:
            continue
        aliases |= names
        yield from names.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (name := dotted(node)) is not None:
            root, _, rest = name.partition(".")
            yield f"{aliases.get(root, root)}.{rest}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def defined(tree: ast.AST) -> set[str]:
    """The private names that a file makes: functions, classes, variables and attributes of its own objects."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if dotted(node.value) == "self" else set()
    return set(filter(is_private, names))


def used(tree: ast.AST) -> set[str]:
    """The private names that a file asks objects for, by attributes or by strings."""
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    pieces = {id(piece) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            names.add(node.value)
    return set(filter(is_private, names)) - OF_NAMED_TUPLES


TREES = {path: ast.parse(path.read_text()) for path in MODULES if path not in PLACES | FILE_NAMES}
ADVICE = "let numpyro_flows/_jax.py or modeling/_numpyro.py give it a name of ours, and test here what it does"


def test_two_files_alone_import_it():
    found = [f"{path.relative_to(PACKAGE)}: {name}" for path in TREES for name in dotted_names(TREES[path])]
    found = [line for line in found if is_unstable(line.partition(": ")[2])]
    assert not found, f"{found}: {ADVICE}"


def test_two_files_alone_use_private_attributes():
    """A private name is one of the file's own, or of another file of the package and not NumPyro's as well."""
    bases = (dist.MaskedDistribution, dist.TransformedDistribution, Transform, constraints.Constraint, AutoContinuous)
    numpyros = {name for base in bases for name in dir(base)} | {*_numpyro.DISTRIBUTION_STATE}
    ours = set().union(*map(defined, TREES.values())) - numpyros
    found = {
        str(path.relative_to(PACKAGE)): sorted(unknown)
        for path, tree in TREES.items()
        if (unknown := used(tree) - defined(tree) - ours - {"_unobserved"})  # the suffix that NumPyro documents
    }
    assert not found, f"{found}: {ADVICE}"


def test_two_files_alone_override_private_methods():
    found = []
    for path in TREES:
        module = importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
        for _, cls in inspect.getmembers(module, inspect.isclass):
            theirs = {n for base in cls.__mro__ if base.__module__.split(".")[0] in LIBRARIES for n in vars(base)}
            own = theirs & vars(cls).keys() if cls.__module__ == module.__name__ else set()
            found += [f"{cls.__qualname__}.{name}" for name in own if is_private(name) and name != "_abc_impl"]
    assert not found, f"{found}: {ADVICE}"


KEYS = jax.random.split(jax.random.key(0))
OF_JAX = "JAX or Equinox has changed: adapt numpyro_flows/_jax.py"


def test_traced_functions_are_not_called_again():
    calls = []

    def function(x):
        calls.append(x)
        return {"b": jnp.sin(x), "a": 2 * x}

    traced = _jax.traced(function, jax.ShapeDtypeStruct((), jnp.float32))
    doubled, sine = jax.jit(jax.vmap(traced))(jnp.array([0.5, 1.0]))
    assert len(calls) == 1, OF_JAX
    np.testing.assert_allclose(doubled, [1, 2], err_msg=OF_JAX)
    np.testing.assert_allclose(sine, np.sin([0.5, 1.0]), rtol=1e-6, err_msg=OF_JAX)


def test_values_outside_the_trace_of_a_jit():
    found = []

    def function(x):
        with _jax.eval_context():
            found.append(jax.jit(jax.vmap(lambda key: eqx.error_if(jax.random.normal(key), False, "none")))(KEYS))
        return x

    jax.eval_shape(function, 1.0)
    np.testing.assert_allclose(found[0], jax.vmap(jax.random.normal)(KEYS), rtol=1e-6, err_msg=OF_JAX)


def test_used_leaves():
    like = {"a": (jnp.ones(2), jnp.ones(())), "b": jnp.ones(3)}
    found = _jax.used_leaves(lambda tree: jnp.sum(tree["a"][0]) * tree["a"][0], like)
    assert found == {"a": (True, False), "b": False}, OF_JAX


def test_varying_axes():
    assert _jax.varying_axes(jnp.ones(2)) == _jax.varying_axes(np.ones(2)) == frozenset(), OF_JAX
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    found = []

    def function(split, whole):
        found.extend(map(_jax.varying_axes, (split, whole, _jax.alike(whole, split))))
        return split + whole

    sharded = jax.shard_map(function, mesh=mesh, in_specs=(spec("devices"), spec()), out_specs=spec("devices"))
    jax.eval_shape(sharded, jnp.ones(2), jnp.ones(1))
    assert found == [{"devices"}, set(), {"devices"}], OF_JAX


@pytest.mark.parametrize("jitted", [False, True])
def test_runtime_checks_go_by_the_replaced_one(jitted):
    """Those of `eqx.error_if`, and those with several messages, of the solvers."""
    seen: list[Any] = []

    def check(x, pred, index, msgs, *, on_error):
        seen.append((list(msgs), on_error))
        return x

    def function(x):
        x = eqx.error_if(x, x > 0, "positive")
        return eqx.internal.branched_error_if(x, x > 0, (x > 1).astype(int), ["one", "two"])

    with _jax.checks_by(check):
        (jax.jit(function) if jitted else function)(jnp.ones(()))
    assert seen == [(["positive"], "default"), (["one", "two"], "default")], OF_JAX
    with pytest.raises(eqx.EquinoxRuntimeError, match="positive"):
        _jax.raise_if(jnp.ones(2), jnp.array(True), 0, ["positive"], on_error="default")
    with pytest.raises(eqx.EquinoxRuntimeError, match="positive"):  # as before
        eqx.filter_jit(function)(jnp.ones(()))


OF_NUMPYRO = "NumPyro has changed: adapt numpyro_flows/modeling/_numpyro.py"


def test_overridden_methods_are_theirs():
    """A hook of another name would never be called, and its override would do nothing."""
    for cls, base in [(_numpyro.VectorGuide, AutoContinuous), (_numpyro.TwoWayTransform, Transform)]:
        for name in filter(is_private, vars(cls).keys() - {"_abc_impl"}):
            assert name in dir(base), f"{base.__name__} has no {name}. {OF_NUMPYRO}"
            own, theirs = (inspect.signature(getattr(owner, name)).parameters for owner in (cls, base))
            assert list(own) == list(theirs), f"{base.__name__}.{name} has other arguments. {OF_NUMPYRO}"


def model():
    numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.LogNormal(jnp.zeros(2), 1.0).to_event(1))


class Guide(_numpyro.VectorGuide):
    called = 0

    def after_setup(self, init):
        self.init = init

    def current_posterior(self):
        self.called += 1
        return dist.Normal(jnp.arange(3.0), numpyro.param("scale", 1e-3)).to_event(1)


def test_hooks_of_guides():
    guide = Guide(model, init_loc_fn=partial(numpyro.infer.init_to_value, values={"x": 2.0, "y": jnp.ones(2)}))
    sites = trace(seed(guide, 0)).get_trace()
    np.testing.assert_allclose(guide.init, [2, 0, 0], err_msg=OF_NUMPYRO)
    assert guide.called == 1, OF_NUMPYRO
    latent = sites[_numpyro.latent_name(guide)]["value"]
    np.testing.assert_allclose(latent, np.arange(3), atol=1e-2, err_msg=OF_NUMPYRO)

    draws = guide.sample_posterior(jax.random.key(0), {"scale": 1e-3}, sample_shape=(4, 5))
    np.testing.assert_allclose(draws["x"], np.zeros((4, 5)), atol=1e-2, err_msg=OF_NUMPYRO)
    np.testing.assert_allclose(draws["y"], np.broadcast_to(np.exp([1, 2]), (4, 5, 2)), atol=0.1, err_msg=OF_NUMPYRO)
    with seed(rng_seed=0):
        guide.run_model()
    assert guide.called == 2, OF_NUMPYRO


def test_posterior_and_site_of_numpyros_own_guides():
    guide = AutoDiagonalNormal(model, prefix="my", init_loc_fn=numpyro.infer.init_to_median, init_scale=0.5)
    sites = trace(seed(guide, 0)).get_trace()
    assert sites[_numpyro.latent_name(guide)]["value"].shape == (3,), OF_NUMPYRO
    with substitute(data={"my_loc": jnp.arange(3.0), "my_scale": jnp.ones(3)}):
        found = _numpyro.current_posterior(guide).log_prob(jnp.arange(3.0)).sum()
    np.testing.assert_allclose(found, -1.5 * np.log(2 * np.pi), rtol=1e-6, err_msg=OF_NUMPYRO)


def test_inverse_of_transforms():
    class Half(_numpyro.TwoWayTransform):
        def __call__(self, x):
            return x / 2

        def inverse(self, y):
            return 2 * y

        def tree_flatten(self):
            return (), ((), {})

    half = Half()
    assert half.inv(3.0) == half.inv.inv.inv(3.0) == 6.0, OF_NUMPYRO
    assert half.inv.inv(3.0) == 1.5, OF_NUMPYRO


def test_masks():
    mask = jnp.array([True, False])
    np.testing.assert_array_equal(_numpyro.mask_of(dist.Normal(0, 1).mask(mask)), mask, OF_NUMPYRO)
    for mask in (True, False):
        assert _numpyro.mask_of(dist.MaskedDistribution(dist.Normal(0, 1), mask)) is mask, OF_NUMPYRO


def test_state_of_distributions():
    made = object.__new__(dist.Normal)
    dist.Distribution.__init__(made, (2,), (3,), validate_args=False)
    assert vars(made) == dict(zip(_numpyro.DISTRIBUTION_STATE, [(2,), (3,), False])), OF_NUMPYRO
    assert (made.batch_shape, made.event_shape) == ((2,), (3,)), OF_NUMPYRO
    assert _numpyro.validates(made) is False, OF_NUMPYRO
    assert _numpyro.validates(dist.Normal(0, 1, validate_args=True)) is True, OF_NUMPYRO


def test_values_outside_the_support():
    distribution = dist.LogNormal(0, 1)
    with pytest.warns(UserWarning, match="support"):
        _numpyro.warn_outside_support(distribution, -1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _numpyro.warn_outside_support(distribution, 1.0)


class Own(dist.Normal):
    """A distribution that does not say itself what becomes of it in a scan."""


def test_sites_in_scans():
    _numpyro.register_in_scan(Own, lambda own: jnp.shape(own.loc))

    def scanned():
        numpyro.sample("x", dist.Normal(0.0, 1.0))
        scan(lambda carry, x: (carry, numpyro.sample("y", Own(x, 1.0))), None, jnp.arange(3.0))

    sites = trace(seed(scanned, 0)).get_trace()
    assert [_numpyro.is_in_scan(sites[name]) for name in ("x", "y")] == [False, True], OF_NUMPYRO
    assert sites["y"]["fn"].batch_shape == (3,), OF_NUMPYRO
    values = {"x": 0.0, "y": jnp.arange(3.0)}
    np.testing.assert_allclose(
        log_density(scanned, (), {}, values)[0], -2 * np.log(2 * np.pi), rtol=1e-6, err_msg=OF_NUMPYRO
    )
