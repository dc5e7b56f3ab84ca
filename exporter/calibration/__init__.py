"""Rounding to 4 bits that minimises the error of the layers' outputs on a text: CALIBRATION."""
