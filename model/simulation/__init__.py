"""Chest CT of lungs with emphysema of known type, extent and place: what stands in where no scans may be had.

>>> import numpy as np
>>> from model.simulation import draw_parameters, simulate
>>> parameters = draw_parameters(np.random.SeedSequence(7), centrilobular_score=3, paraseptal_score=1)
>>> case = simulate(parameters, grid="example")
>>> case.centrilobular_score, case.paraseptal_score
(3, 1)
"""

from .case import (
    CaseParameters,
    SimulatedCase,
    draw_parameters,
    simulate,
)
from .disease import NoRoomError
from .shapes import LungShape

__all__ = ["CaseParameters", "LungShape", "NoRoomError", "SimulatedCase", "draw_parameters", "simulate"]
