"""How storage fails, whatever holds the files: the exceptions that folders and buckets share.

StorageError
├── Vanished, Changed         the object is gone, or is no longer the one that was asked for
├── Denied
│   └── BadCredentials        no request will do better
├── Unreachable               a later request may do better
│   └── Damaged               a body came cut short or altered
├── Full, Unsupported         no write will do better; the server cannot do this
└── NoSuchFolder              no such bucket, or what should be a folder is none
"""


class StorageError(OSError):
    """Something stored could not be listed, read or written; the message is one line that names its URI."""

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(uri, reason)  # the arguments that unpickling calls it with again
        self.errno, self.strerror = None, reason

    def __str__(self) -> str:
        uri = str(self.args[0])
        return f"{uri if uri.isprintable() else repr(uri)}: {self.strerror}"


class Vanished(StorageError):  # noqa: N818
    """There is no such object."""


class Changed(StorageError):  # noqa: N818
    """The object is no longer the one with the etag that was asked for."""


class Denied(StorageError):  # noqa: N818
    """This is not allowed."""


class Unreachable(StorageError):  # noqa: N818
    """The storage server does not answer as it should, but may a little later."""


class Damaged(Unreachable):
    """A body came cut short or altered."""


class Full(StorageError):  # noqa: N818
    """There is no room left: no write will do better."""


class Unsupported(StorageError):  # noqa: N818
    """The storage server does not know how to do this."""


class BadCredentials(Denied):
    """Credentials are missing, wrong or expired: no request will do better."""


class NoSuchFolder(StorageError):  # noqa: N818
    """There is no such bucket, or what should be a folder is none."""
