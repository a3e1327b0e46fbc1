"""Segment the new and changed images of a folder or bucket: `python jobs/segment.py --help`."""

import sys

from unet.command_line import run
from unet.segment.job import segment
from unet.segment.settings import SegmentSettings

if __name__ == "__main__":
    sys.exit(run(segment, SegmentSettings))
