"""Builds the distribution `fastreid-rib`.

It imports neither torch nor FastReID, so that pip can build it in isolation, and it asks for
neither: `fastreid` pins torch 1.13.1, and any requirement on torch would let pip replace the one
that is there.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent

# One line, because `site` runs only lines that begin with "import", and inside `try`, because
# whatever it raises would be printed at every start of every Python program in the environment.
# Without the package, or with a broken one, the interpreter must start as if this were not there.
# (importlib.util.find_spec would do too, and takes several times as long to import.)
ARM_AT_START = r'import sys; exec("try:\n import fastreid_rib\nexcept Exception: pass")'


class BuildWithHook(build_py):
    """Puts `fastreid_rib.pth` beside the package: the wheel carries it into site-packages."""

    def run(self):
        super().run()
        if not self._editable:
            Path(self._hook).parent.mkdir(parents=True, exist_ok=True)
            Path(self._hook).write_text(ARM_AT_START + "\n", encoding="utf-8")

    def get_outputs(self, include_bytecode=1):
        """Names the file too: what is not named here is left out of the wheel's RECORD."""
        outputs = super().get_outputs(include_bytecode)
        return outputs if self._editable else [*outputs, self._hook]

    @property
    def _hook(self):
        return str(Path(self.build_lib) / "fastreid_rib.pth")

    @property
    def _editable(self):
        # An editable install copies nothing; there `import fastreid_rib` arms the hook.
        return getattr(self, "editable_mode", False)


def version():
    """Reads the version as text: importing the package would need what pip has yet to install."""
    text = (HERE / "fastreid_rib" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE).group(1)


def readme():
    path = HERE / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


setup(
    name="fastreid-rib",
    version=version(),
    description="RIB (information-bottleneck) training and attention for FastReID",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.8",
    packages=find_packages(include=["fastreid_rib", "fastreid_rib.*"]),
    package_data={"fastreid_rib": ["py.typed"]},
    cmdclass={"build_py": BuildWithHook},
    # No upper bounds anywhere: they would move versions that the user's FastReID works with.
    install_requires=[
        "numpy",
        "yacs",
        # What FastReID imports and does not declare.
        "gdown",
        "matplotlib",
        "tqdm",
        "six; python_version < '3.10'",  # torch 1.13's TensorBoard writer imports it
    ],
    extras_require={
        # For `pip install --no-deps fastreid`: what it declares, without its pins and its torch.
        # torchvision is not among them: each one pins its torch.
        "fastreid": [
            "cython",
            "faiss-cpu",
            "opencv-python-headless",
            "pillow",
            "pyyaml",
            "scikit-learn",
            "scipy",
            "setuptools; python_version >= '3.12'",  # distutils, for FastReID's Cython evaluator
            "tabulate",
            "tensorboard",
            "termcolor",
        ],
    },
)
