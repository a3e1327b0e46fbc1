"""The chunks of a PNG."""

import struct
import zlib
from typing import IO

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def without_damaged_chunks(file: IO[bytes]) -> bytes | None:
    """Return a PNG without the damaged ones of its ancillary chunks, those that pixels do not depend on; None if there
    are none, or it is no PNG."""
    file.seek(0)
    data, place = file.read(), len(SIGNATURE)
    kept, damaged = [SIGNATURE], False
    while data.startswith(SIGNATURE) and place + 12 <= len(data):
        end = place + 12 + struct.unpack_from(">I", data, place)[0]
        chunk, place = data[place:end], end
        is_ancillary = bool(chunk[4] & 32)
        if is_ancillary and zlib.crc32(chunk[4:-4]).to_bytes(4) != chunk[-4:]:
            damaged = True
        else:
            kept.append(chunk)
    return b"".join(kept) if damaged else None
