"""Images for a file: what one is, and where they come from."""

#: Before NAME:ROOT, the test split of a data set that torchvision reads, where a path may stand.
TORCHVISION = "torchvision:"
