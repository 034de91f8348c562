"""What of building the distribution must be code; `pyproject.toml` has the rest.

It imports neither torch nor FastReID, so that pip can build it in isolation.

The wheel carries the kernels that the compilers here can build: with g++ or clang++ those for the
CPU, with nvcc those for CUDA; with neither it is a pure Python wheel, and the loss runs in plain
PyTorch. pip shows what was left out, and why, with -v only; `python -m fastreid_rib doctor` tells
it later. An editable install builds them into the source tree (fastreid_rib/ops/lib), where they
stay; `python -m fastreid_rib build-kernels` builds them anew when the sources have changed.

Environment:
    FASTREID_RIB_KERNELS: none, cpu, cuda or all: build these, and fail if that cannot be done.
"""

import importlib.util
import os
import re
import shutil
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1
    from wheel.bdist_wheel import bdist_wheel

HERE = Path(__file__).resolve().parent
LIBRARIES = Path("fastreid_rib", "ops", "lib")

# One line, because `site` runs only lines that begin with "import", and inside `try`, because
# whatever it raises would be printed at every start of every Python program in the environment.
# Without the package, or with a broken one, the interpreter must start as if this were not there.
# (importlib.util.find_spec would do too, and takes several times as long to import.)
ARM_AT_START = r'import sys; exec("try:\n import fastreid_rib\nexcept Exception: pass")'


class Build(build_py):
    """Puts `fastreid_rib.pth` beside the package, and compiled kernels into it.

    An editable install copies nothing: the kernels go into the source tree, and
    `import fastreid_rib` arms the hook.
    """

    def run(self):
        super().run()
        if self._editable:
            folder = HERE / LIBRARIES
            folder.mkdir(exist_ok=True)
            build_kernels(folder)
            return
        Path(self._hook).write_text(ARM_AT_START + "\n", encoding="utf-8")
        folder = self._libraries
        shutil.rmtree(str(folder), ignore_errors=True)  # what an earlier build has left there
        folder.mkdir()
        build_kernels(folder)

    def get_outputs(self, include_bytecode=1):
        """Names the files too: what is not named here is left out of the wheel's RECORD."""
        outputs = super().get_outputs(include_bytecode)
        if self._editable:
            return outputs
        return [*outputs, self._hook, *map(str, self._libraries.glob("*.so"))]

    @property
    def _hook(self):
        return str(Path(self.build_lib) / "fastreid_rib.pth")

    @property
    def _libraries(self):
        return Path(self.build_lib) / LIBRARIES

    @property
    def _editable(self):
        return getattr(self, "editable_mode", False)


class BuildWheel(bdist_wheel):
    """Tags a wheel with compiled kernels for this platform, and for every Python."""

    def get_tag(self):
        python, abi, platform = super().get_tag()
        if any(Path(self.bdist_dir, LIBRARIES).glob("*.so")):
            platform = re.sub(r"\W", "_", sysconfig.get_platform())
        return python, abi, platform


def build_kernels(folder):
    """Builds the kernels of each kind that is wanted into a folder."""
    # Loaded by its path, since importing it as part of the package would need torch.
    path = HERE / "fastreid_rib" / "ops" / "build.py"
    spec = importlib.util.spec_from_file_location("fastreid_rib_ops_build", str(path))
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)

    wanted = os.environ.get("FASTREID_RIB_KERNELS", "")
    choices = {"": kernels.KINDS, "all": kernels.KINDS, "none": ()}
    choices.update({kind: (kind,) for kind in kernels.KINDS})
    if wanted not in choices:
        raise SystemExit(f"FASTREID_RIB_KERNELS must be none, cpu, cuda or all, got {wanted!r}")
    for kind in choices[wanted]:
        try:
            kernels.build(kind, folder)
            print(f"fastreid-rib: {kind} kernels built")
        except kernels.BuildError as error:
            if wanted:
                raise SystemExit(f"FASTREID_RIB_KERNELS={wanted}: {error}") from None
            print(f"fastreid-rib: {kind} kernels left out: {error}")


setup(license="Apache-2.0", cmdclass={"build_py": Build, "bdist_wheel": BuildWheel})
