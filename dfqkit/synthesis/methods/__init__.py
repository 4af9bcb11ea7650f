"""Methods that make images: one subject of the literature each."""
