"""ONNX Runtime: its targets, sessions, account of what ran, and rules."""
