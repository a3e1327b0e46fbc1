"""The sample set: generated scenes in CamVid's layout, to train on without any data at hand.

Scenes of even number train, scenes of odd number validate. sample.json is written last and says which set is
complete: a set that is there is left alone, a half-written one is completed, another one is replaced.
"""

import json

from unet.data.image import encode_image, encode_mask
from unet.sample.scene import draw_scene
from unet.sample.things import LABELS
from unet.storage.store import open_store

VERSION = 2  # counts changes of the generator: a folder written by another version is written anew
MARKER = "sample.json"


def write_sample_set(folder: str, *, train: int = 240, val: int = 60) -> None:
    """Writes `train` and `val` scenes to `folder` in CamVid's layout; returns at once if they are there.

    train/ and val/ hold the images, trainannot/ and valannot/ palette masks of the same names.

    Raises:
        StorageError: `folder` cannot be written.
    """
    store = open_store(folder)
    wanted = json.dumps({"version": VERSION, "train": train, "val": val}).encode() + b"\n"
    there = {item.key for page in store.list() for item in page}
    if MARKER not in there or store.get(MARKER) != wanted:
        stale = {key for key in there if "/scene-" in key and key.count("/") == 1 and key.endswith(".png")}
        store.delete(sorted((stale | {MARKER}) & there))  # nothing, in a bucket where nobody may delete
        there -= stale
    for parity, (split, count) in enumerate((("train", train), ("val", val))):
        for index in range(count):
            names = [f"{part}/scene-{index:05d}.png" for part in (split, f"{split}annot")]
            if not there.issuperset(names):
                image, mask = draw_scene(2 * index + parity)
                store.put(names[0], encode_image(image))
                store.put(names[1], encode_mask(mask, LABELS))
    store.put(MARKER, wanted)
