from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from model.simulation import CaseParameters, SimulatedCase, draw_parameters, simulate
from model.simulation.case import Look
from model.simulation.confounders import ConfounderParameters
from model.simulation.scanner import GridName

CaseMaker = Callable[..., SimulatedCase]

NO_CONFOUNDERS = ConfounderParameters(0.0, -900.0, 30.0, 0.0, 1.0, 0.0, 0.0, 0.0)


def draw(
    seed: int, cle: int | None = None, pse: int | None = None, panlobular: float = 0.0, look: Look = "measured"
) -> CaseParameters:
    return draw_parameters(np.random.SeedSequence(seed), cle, pse, panlobular=panlobular, look=look)


def ideal(parameters: CaseParameters) -> CaseParameters:
    """The same person without confounders, in a scanner without noise or blur that sees less than half a slice, and with
    a mask that follows the pleura."""
    scanner = replace(parameters.scanner, noise=0.0, mtf50=50.0, enhancement=0.0, slice_thickness=0.6, slice_increment=0.5)
    return replace(parameters, confounders=NO_CONFOUNDERS, scanner=scanner, mask=None, repeated_level=None)


@pytest.fixture(scope="session")
def ideal_case() -> CaseMaker:
    """Makes a case of given scores without confounders, noise and blur; each one once a session.

    On the small grid, unless a test looks at structures of a millimetre.
    """

    @cache
    def make(seed: int, cle: int, pse: int, panlobular: float = 0.0, grid: GridName = "example") -> SimulatedCase:
        return simulate(ideal(draw(seed, cle, pse, panlobular=panlobular)), grid)

    return make
