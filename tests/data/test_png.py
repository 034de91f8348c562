import io

import numpy as np
import pytest
from PIL import Image

from fastreid_rib.data.png import encode_png


# the last one fills more than one stored block of 65535 bytes
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (64, 32), (256, 128)])
def test_pillow_reads_the_pixels_back(shape):
    pixels = np.random.RandomState(0).randint(0, 256, size=(*shape, 3)).astype(np.uint8)
    image = Image.open(io.BytesIO(encode_png(pixels)))
    image.verify()  # checks the checksums
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)


def test_refuses_what_is_no_rgb_picture():
    with pytest.raises(ValueError, match="uint8"):
        encode_png(np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        encode_png(np.zeros((2, 2), dtype=np.uint8))
