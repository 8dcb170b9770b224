"""What pyproject.toml cannot say: an installed package brings the project's data along, in ``softening/data``."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class WithData(build_py):
    """Copy the registry, the small tables and the results; not what runs have left."""

    def run(self) -> None:
        """Build as usual, then copy. An editable installation reads the checkout."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "softening", "data")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(HERE / "data", target, ignore=shutil.ignore_patterns("runs", "*.py", ".*"))


setup(cmdclass={"build_py": WithData})
