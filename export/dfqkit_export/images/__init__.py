"""Images for a file: what one is, and where they come from."""
