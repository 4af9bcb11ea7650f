"""Synthesizers: images from a trained network alone. A method is a folder in `methods`, its name a line of a table."""
