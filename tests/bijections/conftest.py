"""What the tests of bijections share."""

from tests.strict import strict_promotion as strict_promotion
