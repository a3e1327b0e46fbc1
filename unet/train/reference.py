"""What the training images of a run are like: what the images that its model will segment are compared with.

The images are those of the set as they are, not augmented and at their own scale, as segmentation meets them.
"""

from functools import partial

from unet.data.channels import Channels
from unet.data.check import DECODED_PIXELS, DECODERS
from unet.data.drift import Floats, ImageStatistics, histograms_of
from unet.data.image import ImageError
from unet.data.layouts import Pair
from unet.data.open_pair import OpenPair, naming, open_pairs, pixels_of
from unet.data.planes import read_array
from unet.data.prefetch import prefetch
from unet.settings import RequestError

MAX_IMAGES = 256
"""Training images that are measured, at most: more hardly change what their sum is like."""


def measure_reference(pairs: tuple[Pair, ...], channels: Channels, classes: int, limit: int) -> ImageStatistics:
    """Return the statistics of `limit` of the training images at most, at equal distances; validation adds its masks.

    Raises:
        RequestError: names an image that cannot be read.
    """
    count = min(len(pairs), limit, MAX_IMAGES)
    chosen = [pairs[place * len(pairs) // count] for place in range(count)]
    statistics = ImageStatistics.empty(channels.count, classes)
    measure, weight = partial(_histograms_of, channels), partial(pixels_of, channels=channels)
    for found in prefetch(measure, open_pairs(chosen), weight=weight, budget=DECODED_PIXELS, threads=DECODERS):
        if isinstance(found, ImageError):
            raise RequestError(str(found))
        statistics.add_image(found)
    return statistics


def _histograms_of(channels: Channels, opened: OpenPair | ImageError) -> Floats | ImageError | None:
    if isinstance(opened, ImageError):
        return opened
    try:
        with naming(opened.pair.image):
            return histograms_of(*read_array(opened.image, channels))
    except ImageError as error:
        return error
