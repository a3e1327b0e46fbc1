"""Labelled sets: what masks mean, formats of images and masks, layouts, checks, augmentation."""
