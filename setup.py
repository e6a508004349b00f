"""Everything static is in pyproject.toml; native libraries are declared here once there are sources for them."""

from setuptools import setup

setup()
