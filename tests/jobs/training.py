"""Training runs in tests: the flags of a short one."""

from typing import Any

STEPS, EPOCHS, CHECKPOINT_EVERY = 12, 3, 5


def training_flags(data: str, output: str, **more: Any) -> list[str]:
    """Return the flags of a run with all that a checkpoint has to hold: momentum, averages, dropout, a schedule.

    The label file is CLASSES, unless `more` names another.
    """
    flags = {
        "data": data,
        "classes": "CLASSES",
        "output": output,
        "name": "run",
        "size": "48 64",
        "width": 8,
        "depth": 2,
        "norm": "batch",
        "dropout": 0.1,
        "epochs": EPOCHS,
        "steps_per_epoch": STEPS,
        "batch_size": 4,
        "checkpoint_every": CHECKPOINT_EVERY,
    } | more
    return [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", *str(value).split())]
