"""The exceptions that folders and buckets share.

StorageError
├── Vanished, Changed         the object is gone, or is no longer the one that was asked for
├── Archived                  it has to be restored before it can be read
├── Denied
│   └── BadCredentials        every other request will be refused as well
│       └── MissingPackage    no request can be signed without a package that is not installed
├── Unreachable               the same request may succeed later
│   └── Damaged               a body came cut short or altered
├── Full, Unsupported         the storage is full; the server cannot do this
└── NoSuchFolder              there is no such bucket, or the path is no folder
"""


class StorageError(OSError):
    """An object or folder could not be listed, read or written. The message is one line that begins with its URI."""

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(uri, reason)  # `args`, with which unpickling calls the class again
        self.errno, self.strerror = None, reason

    def __str__(self) -> str:
        uri = str(self.args[0])
        return f"{uri if uri.isprintable() else repr(uri)}: {self.strerror}"


class Vanished(StorageError):  # noqa: N818
    """There is no such object."""


class Changed(StorageError):  # noqa: N818
    """The object is no longer the one with the etag that was asked for."""


class Archived(StorageError):  # noqa: N818
    """The object is in an archive, and has to be restored before it can be read."""


class Denied(StorageError):  # noqa: N818
    """The caller has no permission for this."""


class Unreachable(StorageError):  # noqa: N818
    """The storage server does not answer, or answers with a fault of its own; the same request may succeed later."""


class Damaged(Unreachable):
    """The body of a response was cut short, or its checksum is wrong."""


class Full(StorageError):  # noqa: N818
    """The storage is full."""


class Unsupported(StorageError):  # noqa: N818
    """The storage server does not implement this."""


class BadCredentials(Denied):
    """Credentials are missing, wrong or expired: every other request will be refused as well."""


class MissingPackage(BadCredentials):
    """Requests cannot be signed without a package that is not installed."""


class NoSuchFolder(StorageError):  # noqa: N818
    """There is no such bucket, or no folder at this path."""
