"""Rotations of data, by which the next marginals are as far from Gaussian as possible."""

from typing import Literal

import numpy as np
from jaxtyping import Float

from numpyro_flows.arguments import require_choice
from numpyro_flows.gaussianization.entropies import Samples, divergences_from_normal

Matrix = Float[np.ndarray, "dim dim"]
Kind = Literal["best", "pca", "ica", "random"]
"""How a rotation is found."""

_NUM_RANDOM = 8  # candidates beside PCA and ICA
_NUM_ANGLES = 32  # in two dimensions, where they are all that there is
_ICA_STEPS, _ICA_DONE = 100, 1e-6


def pca(data: Samples) -> Matrix:
    """The orthogonal matrix `R`, `(dim, dim)`, that makes the coordinates of `R x` uncorrelated, of data `(num, dim)`.

    Example:
        >>> import numpy as np
        >>> from numpyro_flows.gaussianization import pca
        >>> data = np.random.default_rng(0).normal(size=(100, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]])
        >>> bool(abs(np.cov(data @ pca(data).T, rowvar=False)[0, 1]) < 1e-6)
        True
    """
    return np.linalg.eigh(np.cov(data, rowvar=False).reshape(data.shape[1], -1))[1].T


def ica(data: Samples, rng: np.random.Generator) -> Matrix:
    """The orthogonal matrix nearest to the one that unmixes the data: symmetric FastICA with the contrast `log cosh`.

    Data are `(num, dim)`, and the matrix `(dim, dim)`.

    Source: Hyvarinen 1999, IEEE Transactions on Neural Networks 10(3).

    Example:
        >>> import numpy as np
        >>> from numpyro_flows.gaussianization import ica
        >>> rng = np.random.default_rng(0)
        >>> rotation = ica(rng.uniform(size=(100, 2)), rng)
        >>> np.allclose(rotation @ rotation.T, np.eye(2))
        True
    """
    num, dim = data.shape
    centred = data - data.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / num)
    whitening = vectors / np.sqrt(np.maximum(values, 1e-12 * values[-1])) @ vectors.T
    white = centred @ whitening
    unmixing = random(dim, rng)
    for _ in range(_ICA_STEPS):
        activation = np.tanh(white @ unmixing.T)
        step = activation.T @ white / num - (1 - activation**2).mean(0)[:, None] * unmixing
        new = _polar(step)
        change = np.abs(np.abs((new * unmixing).sum(1)) - 1).max()
        unmixing = new
        if change < _ICA_DONE:
            break
    return _polar(unmixing @ whitening)


def random(dim: int, rng: np.random.Generator) -> Matrix:
    """A random orthogonal matrix; all are equally likely."""
    q, r = np.linalg.qr(rng.normal(size=(dim, dim)))
    return q * np.sign(np.diagonal(r))


def most_informative(data: Samples, rng: np.random.Generator) -> Matrix:
    """The matrix, of PCA, ICA and some random ones, whose coordinates have the largest sum of divergences from N(0, 1).

    The next marginal map removes just this sum. In two dimensions the random ones are a grid of angles. Data are
    `(num, dim)`, and the matrix `(dim, dim)`.

    Example:
        >>> import numpy as np
        >>> from numpyro_flows.gaussianization import most_informative
        >>> rng = np.random.default_rng(0)
        >>> rotation = most_informative(rng.uniform(size=(100, 2)), rng)
        >>> np.allclose(rotation @ rotation.T, np.eye(2))
        True
    """
    dim = data.shape[1]
    if dim == 2:
        angles = (np.arange(_NUM_ANGLES) + rng.uniform()) * (0.5 * np.pi / _NUM_ANGLES)
        others = [np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) for a in angles]
    else:
        others = [random(dim, rng) for _ in range(_NUM_RANDOM)]
    candidates = [pca(data), ica(data, rng), *others]
    gains = [divergences_from_normal(data @ candidate.T).mean(0).sum() for candidate in candidates]
    return candidates[int(np.argmax(gains))]


def find_rotation(kind: Kind, data: Samples, rng: np.random.Generator) -> Matrix:
    """A rotation, of determinant 1, with the order and signs of its coordinates chosen to bring it near the identity.

    Order and signs do not matter to the marginal maps after it.

    Raises:
        ValueError: if `kind` is unknown.
    """
    finders = {
        "best": lambda: most_informative(data, rng),
        "pca": lambda: pca(data),
        "ica": lambda: ica(data, rng),
        "random": lambda: random(data.shape[1], rng),
    }
    require_choice(finders, rotation=kind)
    return nearest_to_identity(finders[kind]())


def nearest_to_identity(matrix: Matrix) -> Matrix:
    """The rows of an orthogonal matrix in another order and with other signs: determinant 1, a large diagonal."""
    from scipy.optimize import linear_sum_assignment  # takes half a second to import, and is rarely needed

    rows = linear_sum_assignment(-np.abs(matrix.T))[1]
    matrix = matrix[rows]
    diagonal = np.diagonal(matrix)
    signs = np.where(diagonal < 0, -1.0, 1.0)
    if np.linalg.det(matrix) * np.prod(signs) < 0:
        signs[np.argmin(np.abs(diagonal))] *= -1
    return matrix * signs[:, None]


def _polar(matrix: Matrix) -> Matrix:
    """The nearest orthogonal matrix."""
    left, _, right = np.linalg.svd(matrix)
    return left @ right
