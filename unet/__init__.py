"""Train a U-Net on a labelled image set and segment buckets of images with it, on Ray."""

__version__ = "0.1.0"
