"""A Gaussian low-pass over what any source draws (SynQ)."""
