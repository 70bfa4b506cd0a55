"""What the tests of Gaussianization share."""

from tests.bijections.common import quick_to_compile  # noqa: F401
