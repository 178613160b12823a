"""Width and height of an encoded picture, read from its header without decoding it.

For JPEG, PNG and WebP, which WebDataset shards hold. What is read may be anybody's bytes: nothing
is trusted but the numbers it gives, and these may be wrong as the picture may be broken.
"""

_PNG = b"\x89PNG\r\n\x1a\n"
# Frame headers, which hold the size: SOF0 to SOF15 without DHT, JPG and DAC.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset(range(0xD0, 0xDA)) | {0x01}  # markers without a length


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels, or None where ``data`` does not tell.

    Args:
        data: the file's beginning; 256 KB are enough for all but the oddest JPEGs.
    """
    size = None
    if data.startswith(b"\xff\xd8"):
        size = _jpeg_size(data)
    elif data.startswith(_PNG) and len(data) >= 24:
        size = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        size = _webp_size(data)
    return size if size is not None and min(size) > 0 else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Walk over the segments to the first frame header (ITU T.81, B.1 and B.2.2)."""
    place = 2
    while place + 9 <= len(data):
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            place += 1
        elif marker in _BARE:
            place += 2
        elif marker in _FRAMES:
            height = int.from_bytes(data[place + 5 : place + 7], "big")
            return int.from_bytes(data[place + 7 : place + 9], "big"), height
        else:
            place += 2 + max(int.from_bytes(data[place + 2 : place + 4], "big"), 2)
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Read the first chunk (RFC 9649, 2.5 to 2.7)."""
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return (
            1 + int.from_bytes(data[24:27], "little"),
            1 + int.from_bytes(data[27:30], "little"),
        )
    if kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(data) >= 30:
        return (
            int.from_bytes(data[26:28], "little") & 0x3FFF,
            int.from_bytes(data[28:30], "little") & 0x3FFF,
        )
    return None
