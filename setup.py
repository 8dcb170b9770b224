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
        # An earlier build may have left modules that are gone since; they would go into the wheel.
        for package in () if self.editable_mode else ("helpers", "softening"):
            shutil.rmtree(Path(self.build_lib, package), ignore_errors=True)
        super().run()
        if not self.editable_mode:
            shutil.copytree(HERE / "data", Path(self.build_lib, "softening", "data"), ignore=shutil.ignore_patterns("runs", "*.py", ".*"))


setup(cmdclass={"build_py": WithData})
