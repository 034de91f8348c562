"""PNG files whose bytes depend on the pixels alone."""

import struct
import zlib

import numpy as np

_STORED_MAX = 65535


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes a picture as an uncompressed PNG file.

    Compressors are free to change their output from one version to the next (zlib and zlib-ng
    differ today), so the deflate stream is written here, in stored blocks. From zlib only the two
    checksums are used, and those are fixed by their standards.

    Args:
        pixels: (height, width, 3), uint8, RGB.

    Returns:
        The content of the file.

    Raises:
        ValueError: pixels are of another shape or dtype.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"expected RGB pixels (height, width, 3) of uint8, got {pixels.shape} of {pixels.dtype}"
        )
    height, width, _ = pixels.shape
    # each row starts with its filter type, 0 = none
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)
    rows[:, 1:] = pixels.reshape(height, 3 * width)
    raw = rows.tobytes()
    deflated = b"".join(
        struct.pack("<BHH", start + _STORED_MAX >= len(raw), len(block), len(block) ^ 0xFFFF)
        + block
        for start in range(0, len(raw), _STORED_MAX)
        for block in [raw[start : start + _STORED_MAX]]
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    data = b"\x78\x01" + deflated + struct.pack(">I", zlib.adler32(raw))
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
