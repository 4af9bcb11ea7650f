"""Runs: the folder that one leaves on disk, and the stages that fill it."""
