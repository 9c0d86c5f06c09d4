"""pytest for the whole project, doctests included: each test starts from the same random numbers, in any order.

``ISTN_TEST_SEED`` gives other ones: a test that then fails depends on chance, which none may do.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from monai.transforms import Randomizable

SEED = int(os.environ.get("ISTN_TEST_SEED", "0"))


def seed_everything() -> None:
    """Python's, NumPy's and PyTorch's global generators, and the one that MONAI's random transforms share."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    Randomizable.R.seed(SEED)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Iterator[None]:
    """Before each fixture: one of a module must not depend on the test that happens to need it first."""
    seed_everything()
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Before each test, whatever its fixtures drew."""
    seed_everything()
