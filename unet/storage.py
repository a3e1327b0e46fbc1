"""Where files live: list, read and write by URI, whatever stands behind it.

A URI is a local path. Keys are relative to a folder and use forward slashes. A write is whole or absent: no reader
ever sees half a file.
"""

import os
import tempfile
from pathlib import Path

from unet.settings import RequestError


def list_files(folder: str) -> list[str]:
    """Keys of all files below `folder`, sorted; hidden files and folders are left out. Empty if there is no folder."""
    found = []
    for parent, folders, files in os.walk(_path(folder), followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(parent, name) for name in files if not name.startswith(".")]
    return sorted(Path(file).relative_to(_path(folder)).as_posix() for file in found)


def join(folder: str, key: str) -> str:
    """The URI of `key` in `folder`."""
    return f"{folder.rstrip('/')}/{key}"


def read(uri: str) -> bytes:
    """All bytes of a file. Raises: FileNotFoundError, OSError."""
    return _path(uri).read_bytes()


def write(uri: str, data: bytes) -> None:
    """Makes or replaces a file, and the folders above it."""
    path = _path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def exists(uri: str) -> bool:
    """Whether there is such a file or folder."""
    return _path(uri).exists()


def check_writable(folder: str, flag: str) -> None:
    """Raises RequestError, naming `flag`, unless files can be made in `folder`; makes the folder."""
    probe = join(folder, ".writable")
    try:
        write(probe, b"")
        _path(probe).unlink()
    except OSError as error:
        raise RequestError(
            f"{flag} {folder}: cannot be written ({error.strerror}); name a folder that you may write to"
        ) from None


def _path(uri: str) -> Path:
    if "://" in uri:
        raise RequestError(f"{uri}: only local folders can be used in this version; copy it to one")
    return Path(uri)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
