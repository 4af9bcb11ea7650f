"""The packages of the wheel: found, so that a new one needs no line; `recipes` is one of them under another name."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["dfqkit", "dfqkit.*"]), *find_packages("export"), "dfqkit.recipes"])
