"""Activation records: what a teacher's layers said of its training images, made while those were there."""
