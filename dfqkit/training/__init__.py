"""Students trained against a teacher: what is minimised, the loop, and where its batches come from."""
