"""Tests of both packages; a package itself only so that tests can share `tests._toys`."""
