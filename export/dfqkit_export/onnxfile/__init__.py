"""ONNX files as data: read with suspicion, their graph, shapes, and how their tensors are stored."""
