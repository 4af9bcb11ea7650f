"""Students: a float graph made into a fake-quantized one, as a target wants it."""
