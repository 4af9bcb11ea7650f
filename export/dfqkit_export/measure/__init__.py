"""What is measured of a file: answers, layers, time."""
