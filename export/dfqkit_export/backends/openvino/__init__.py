"""OpenVINO: its targets, sessions, account of what ran, and rules."""
