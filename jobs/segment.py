"""Segment the new and changed images of a folder or bucket: `python jobs/segment.py --help`."""

import sys

from unet.command_line import run_job

if __name__ == "__main__":
    sys.exit(run_job("segment"))
