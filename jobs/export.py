"""Write a trained model as an ONNX file: `python jobs/export.py --help`."""

import sys

from unet.command_line import run
from unet.model.onnx import export
from unet.model.settings import ExportSettings

if __name__ == "__main__":
    sys.exit(run(export, ExportSettings))
