"""Calibration data, the activations it causes, and their statistics."""
