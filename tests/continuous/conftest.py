"""What the tests of continuous flows share."""

from tests.bijections.common import quick_to_compile  # noqa: F401
