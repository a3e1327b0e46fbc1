"""Values that the processes of a run share, in Ray's key-value store."""

import json
from typing import Any

from unet.runtime.ray_internals import delete_values, get_value, put_value
from unet.segment.run_spec import RunSpec


def publish(spec: RunSpec, name: str, value: Any) -> None:
    """Set a value for all processes of the run; None deletes it."""
    if value is None:
        delete_values(_key(spec, name))
    else:
        put_value(_key(spec, name), json.dumps(value))


def lookup(spec: RunSpec, name: str, default: Any = None) -> Any:
    """Return the value that was published last; `default` if there is none."""
    value = get_value(_key(spec, name))
    return json.loads(value) if value else default


def clear(spec: RunSpec) -> None:
    """Delete all values of the run."""
    delete_values(_key(spec, ""), by_prefix=True)


def _key(spec: RunSpec, name: str) -> str:
    return f"unet/{spec.run}/{name}"
