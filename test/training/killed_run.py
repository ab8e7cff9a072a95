"""Run train.py until its second epoch, then end by SIGKILL: `python -m test.training.killed_run ARGUMENTS OF train.py`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import train
from model.training.loop import EmphysemaTraining

if __name__ == "__main__":
    training_step = EmphysemaTraining.training_step

    def killed_in_the_second_epoch(self: EmphysemaTraining, batch: Any, index: int) -> Any:
        if (self.current_epoch, index) == (1, 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return training_step(self, batch, index)

    setattr(EmphysemaTraining, "training_step", killed_in_the_second_epoch)  # noqa: B010  # mypy allows no assignment
    sys.exit(train.main(sys.argv[1:]))
