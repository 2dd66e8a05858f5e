"""Bundles for devices: compiled for a neural processor, or laid out for an Android app."""
