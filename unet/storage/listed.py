"""An object as a listing shows it, and the URI of a key in a folder."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing shows it."""

    key: str
    """Relative to the URI of the store."""
    size: int
    """Bytes."""
    etag: str
    """Changes whenever the bytes do; without quotes."""
    storage_class: str = "STANDARD"


Page = list[Listed]


def join(folder: str, key: str) -> str:
    """The URI of `key` in `folder`."""
    return f"{folder.removesuffix('/')}/{key}"
