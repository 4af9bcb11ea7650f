"""ONNX files as teachers: from a file to a module of torch that computes the same, proven when it is loaded.

What belongs here: one module for each kind of operator, and what turns a list of them into a graph. Beyond the first
lines nothing knows of files: `capture` and all behind it see a network of torch.

onnx2torch 1.5.15 and onnx2pytorch 0.6.0 were tried on the five files of `tests/benchmarks/importer.py` first; its page
has what they do.
"""
