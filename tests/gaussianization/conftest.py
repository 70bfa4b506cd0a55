"""What the tests of gaussianization share."""

from tests.strict import strict_promotion as strict_promotion
