"""Runtimes: what each accepts, how it runs a file, what it made of the layers."""
