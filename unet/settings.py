"""What the settings of several jobs share. The settings of one job stand in its wing, in a `settings.py`.

A settings class is frozen and keyword-only; the docstring under a field is its help on the command line. What cannot be
right by itself is refused when the class is made, with the flag and the remedy; what depends on files or on the cluster
is refused where they are first seen. Either way it is a `RequestError`.
"""

import math
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import IntEnum
from typing import Any, Literal, TypeVar

Settings = TypeVar("Settings")


class RequestError(ValueError):
    """The request cannot be right: one line that names the flag or file and the remedy. Ends a job with exit 2."""


class ExitCode(IntEnum):
    """How a job ends; 128 + N if signal N, or a time limit as SIGTERM would, stopped it."""

    UNEXPECTED = 1
    """Also: storage or cluster did not answer. Another try may do better."""
    BAD_REQUEST = 2
    TOO_MANY_FAILED = 3
    """segment: more objects failed than --max-failed allows."""
    OUTPUT_HELD = 4
    """segment: another run holds the output."""


@dataclass(frozen=True)
class Geometry:
    """How a model sees an image; a property of the model, stored with it."""

    kind: Literal["resize", "native"]
    """resize: the whole image is resized to `size`. native: trained on crops of `size` at native scale."""
    size: tuple[int, int]
    """Height and width [pixels]."""


Window = tuple[float, float]
"""Samples that become black and white, 0 and 255; between them the scale is linear."""

Precision = Literal["auto", "bf16", "fp16", "fp32"]

PredictPrecision = Literal[Precision, "int8"]
"""How a trained model can be applied as well."""


def to_mapping(settings: Any) -> dict[str, Any]:
    """Return every field by its name, groups flattened: what `--config` reads back."""
    flat: dict[str, Any] = {}
    for item in fields(settings):
        value = getattr(settings, item.name)
        if is_dataclass(value):
            flat |= to_mapping(value)
        else:
            flat[item.name] = list(value) if isinstance(value, tuple) else value
    return flat


def with_values(settings: Settings, values: dict[str, Any]) -> Settings:
    """Return `settings` with some fields, of whatever group they are in, at other values, as `to_mapping` has them."""
    changes: dict[str, Any] = {}
    for item in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, item.name)
        if is_dataclass(value):
            changes[item.name] = with_values(value, values)
        elif item.name in values:
            given = values[item.name]
            changes[item.name] = tuple(given) if isinstance(given, list) else given
    return replace(settings, **changes)  # type: ignore[type-var]


def worker_range(workers: str) -> tuple[int, int]:
    """Return least and most of N or MIN:MAX. Raise RequestError if it is neither."""
    try:
        least, most = (int(part) for part in (workers.split(":") * 2)[:2])
    except ValueError:
        least = most = 0
    if not 1 <= least <= most or workers.count(":") > 1:
        raise RequestError(f"--workers {workers}: give a number, or MIN:MAX as in 1:4")
    return least, most


def at_least(flag: str, value: float, least: float) -> None:
    """Raise RequestError, naming the flag, unless `value` is at least `least`, and finite."""
    if not least <= value < math.inf:
        raise RequestError(f"{flag} {value} must be at least {least}, and finite")
