"""TensorRT: its targets, sessions, account of what ran, and rules."""
