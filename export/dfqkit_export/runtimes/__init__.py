"""Adapters to the runtimes that execute exported models.

What belongs here: one module for each runtime behind the two protocols of `base`. A runtime is imported only inside the
functions of its adapter.
"""
