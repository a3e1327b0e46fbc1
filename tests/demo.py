"""The second half of `make demo`: a bucket of generated images on a local S3 server, segmented twice.

The bucket is the folder runs/demo-server/demo-bucket; the server runs while this does. The second run finds nothing
to do.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.servers.s3 import rclone
from unet.sample.scene import draw_scene

ROOT = Path("runs/demo-server")
IMAGES = 60
FIRST_SCENE = 100_000
"""Far from the scenes that the model was trained on."""


def main() -> int:
    """Returns the exit code of the first command that fails, or 0."""
    folder = ROOT / "demo-bucket" / "images"
    shutil.rmtree(ROOT, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(FIRST_SCENE, FIRST_SCENE + IMAGES):
        Image.fromarray(draw_scene(number)[0]).save(folder / f"scene-{number}.jpg", quality=90)
    flags = ["--input", "s3://demo-bucket/images", "--output", "s3://demo-bucket/masks", "--model", "runs/demo/model"]
    with rclone(ROOT) as url:
        print(f"\n{IMAGES} images in s3://demo-bucket/images on {url}", flush=True)
        for time in ("first", "second"):
            print(f"\n{time} run: python jobs/segment.py {' '.join(flags)}", flush=True)
            code = subprocess.run([sys.executable, "jobs/segment.py", *flags], check=False).returncode
            if code:
                return code
    runs = ROOT / "demo-bucket/masks/_segment/runs"
    latest = sorted(path.parent for path in runs.glob("*/summary.json"))[-2:]
    print("\nmodel:               runs/demo/model")
    print("report of training:  runs/demo/report/index.html")
    print(f"masks:               {ROOT}/demo-bucket/masks")
    for run in latest:
        print(f"report of segmenting: {run}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
