"""Build offloop; the metadata is in setup.cfg, the work in csrc/build."""

import sys
from pathlib import Path

from setuptools import setup

# A build front end does not put the source tree on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from csrc.build.extension import BuildCore, core_extension

setup(ext_modules=[core_extension()], cmdclass={"build_ext": BuildCore})
