"""The promise of the plan on a machine that does nothing else: 20% of the time, 10% of memory."""

from __future__ import annotations

import pytest
from scaling_error import main


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_plan_is_within_its_error() -> None:
    for line in main([]):
        assert abs(line.error) < (0.2 if line.what.startswith("s ") else 0.1), line
