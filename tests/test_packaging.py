"""The wheel: what it asks for, what it installs, what it does at start, what it leaves behind."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from fastreid_rib.base import __version__

REPOSITORY = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
CODE = ("setup.py", "pyproject.toml", "MANIFEST.in")
TEXTS = ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff")
NEEDS_A_COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


def run(*command, check=True, **options):
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def copy_of_the_sources(folder):
    folder.mkdir(exist_ok=True)
    for name in (*CODE, *TEXTS):
        shutil.copy(str(REPOSITORY / name), str(folder))
    ignored = shutil.ignore_patterns("__pycache__", "lib")
    tree = str(REPOSITORY / "fastreid_rib")
    shutil.copytree(tree, str(folder / "fastreid_rib"), ignore=ignored)
    return folder


def build_wheel(source, folder, *, kernels, check=True, **environment):
    """Built by pip in isolation, where there is setuptools and neither torch nor FastReID."""
    command = [*PIP, "wheel", "-v", "--no-deps", "--wheel-dir", folder, source]
    environment = dict(os.environ, FASTREID_RIB_KERNELS=kernels, **environment)
    result = run(*command, env=environment, check=check)
    return next(folder.glob("fastreid_rib-*.whl"), None), result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The one that tools/make_env.sh has made and installed, where there is one."""
    for made in REPOSITORY.glob("build/wheel/*.whl"):
        return made
    source = copy_of_the_sources(tmp_path_factory.mktemp("source"))
    return build_wheel(source, tmp_path_factory.mktemp("wheel"), kernels="", NVCC="no-nvcc")[0]


class Environment:
    """An environment without any package, so that only the wheel's own code can be at work."""

    def __init__(self, path):
        venv.create(str(path), with_pip=False)
        self.python = path / "bin" / "python"
        (self.site_packages,) = path.glob("lib/python*/site-packages")

    def pip(self, *arguments, **variables):
        environment = {**os.environ, **variables}
        environment.pop("PYTHONPATH", None)  # where pip would find what is built in a source tree
        return run(*PIP, "--python", self.python, *arguments, env=environment)

    def install(self, wheel):
        self.pip("install", "--quiet", "--no-deps", "--no-index", wheel)

    def start(self, code="pass", **environment):
        return run(self.python, "-c", code, env=environment, cwd=str(self.site_packages))

    def files(self):
        return sorted(str(path) for path in self.site_packages.rglob("*"))


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "environment")


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheel):
    environment = Environment(tmp_path_factory.mktemp("installed") / "environment")
    environment.install(wheel)
    return environment


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(str(wheel)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode("utf-8"))


def test_the_metadata_say_what_it_is_and_where_it_comes_from(metadata):
    assert metadata["Name"] == "fastreid-rib" and metadata["Version"] == __version__
    assert metadata["License"] == "Apache-2.0"
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == readme.strip()
    assert all(url.split(", ")[1] in readme for url in metadata.get_all("Project-URL"))


def test_it_brings_what_fastreid_does_not_declare_and_changes_no_installed_version(metadata):
    def names(requirements):
        return {re.match(r"[\w.-]+", requirement).group(0) for requirement in requirements}

    requirements = metadata.get_all("Requires-Dist")
    assert names(requirements).isdisjoint({"torch", "torchvision", "fastreid"})
    for requirement in requirements:
        versions = requirement.split(";")[0]
        assert not re.search(r"[<=~!]", versions), f"{requirement} bounds the version from above"
    always = [requirement for requirement in requirements if "extra ==" not in requirement]
    assert {"gdown", "matplotlib", "tqdm", "six"} <= names(always)


def names_in(wheel):
    with zipfile.ZipFile(str(wheel)) as archive:
        return set(archive.namelist())


@NEEDS_A_COMPILER
def test_one_wheel_with_kernels_serves_every_python_of_the_platform(wheel, installed):
    platform = re.sub(r"\W", "_", sysconfig.get_platform())
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")
    assert "fastreid_rib/ops/lib/librib_cpu.so" in names_in(wheel)
    code = (
        "import ctypes; library = ctypes.CDLL('fastreid_rib/ops/lib/librib_cpu.so')\n"
        "library.rib_describe.restype = ctypes.c_char_p\n"
        "print(library.rib_describe().decode())"
    )
    assert installed.start(code).stdout.startswith("CPU")


def test_the_wheel_carries_what_build_kernels_compiles(wheel):
    sources = {path.name for path in (REPOSITORY / "fastreid_rib" / "ops" / "csrc").iterdir()}
    assert {"rib.h", "rib_cpu.cpp", "rib_cuda.cu"} <= sources
    assert {f"fastreid_rib/ops/csrc/{name}" for name in sources} <= names_in(wheel)


def test_the_hook_is_armed_at_start_loads_nothing_heavy_and_can_be_disabled(installed):
    # There is nothing in this environment to load: the hook needs the standard library alone.
    code = "import sys; print('fastreid_rib' in sys.modules, [type(f) for f in sys.meta_path])"
    armed = installed.start(code)
    assert armed.stdout.startswith("True") and "fastreid_rib" in armed.stdout
    disabled = installed.start(code, FASTREID_RIB_DISABLE="1")
    assert "fastreid_rib" not in disabled.stdout
    assert armed.stderr == disabled.stderr == ""


def test_a_broken_package_never_breaks_the_interpreter(environment, wheel):
    environment.install(wheel)
    package = environment.site_packages / "fastreid_rib"
    faults = {
        "half gone": lambda: (package / "activation.py").unlink(),
        "syntax error": lambda: (package / "__init__.py").write_text("def (", encoding="utf-8"),
        "gone": lambda: shutil.rmtree(str(package)),
    }
    for name, fault in faults.items():
        fault()
        result = environment.start("print('started')")
        assert (result.stdout, result.stderr) == ("started\n", ""), name


def test_uninstalling_leaves_nothing_behind(environment, wheel):
    before = environment.files()
    environment.install(wheel)
    assert (environment.site_packages / "fastreid_rib.pth").is_file()
    assert (environment.site_packages / "fastreid_rib" / "py.typed").is_file()
    environment.start()  # writes bytecode
    environment.pip("uninstall", "--quiet", "--yes", "fastreid-rib")
    assert environment.files() == before


# Other ways to build it


@pytest.mark.all_only
def test_without_a_compiler_the_wheel_is_pure_and_says_so_unless_kernels_were_asked_for(
    tmp_path, environment
):
    source = copy_of_the_sources(tmp_path / "source")
    (tmp_path / "bin").mkdir()  # a PATH with the Python that pip builds with, and nothing else
    without = {"PATH": str(tmp_path / "bin"), "CXX": "", "NVCC": "no-nvcc"}
    wheel, said = build_wheel(source, tmp_path, kernels="cpu", check=False, **without)
    assert wheel is None and "FASTREID_RIB_KERNELS=cpu: no compiler for the cpu kernels" in said
    for remains in (source, source / "build" / "lib"):  # of other builds, which may be of no use
        (remains / "fastreid_rib" / "ops" / "lib").mkdir(parents=True)
        (remains / "fastreid_rib" / "ops" / "lib" / "librib_cpu.so").write_bytes(b"old")
    pure, said = build_wheel(source, tmp_path, kernels="", **without)
    assert pure.name.endswith("-py3-none-any.whl")
    assert not [name for name in names_in(pure) if name.endswith(".so")]
    for kind in ("cpu", "cuda"):
        assert f"{kind} kernels left out: no compiler for the {kind} kernels" in said
    environment.install(pure)
    assert environment.start("import fastreid_rib; print('imported')").stdout == "imported\n"


@pytest.mark.all_only
@NEEDS_A_COMPILER
def test_an_editable_install_builds_into_the_source_tree(tmp_path, environment):
    source = copy_of_the_sources(tmp_path / "source")
    options = ("--quiet", "--no-deps", "--editable")
    environment.pip("install", *options, source, FASTREID_RIB_KERNELS="cpu")
    assert (source / "fastreid_rib" / "ops" / "lib" / "librib_cpu.so").is_file()
    code = "import fastreid_rib; print(fastreid_rib.__file__)"
    assert environment.start(code).stdout.strip() == str(source / "fastreid_rib" / "__init__.py")


@pytest.mark.all_only
@pytest.mark.today_only  # the published stack's own setuptools is too old to be called directly
def test_the_packed_sources_give_the_same_wheel(tmp_path):
    source = copy_of_the_sources(tmp_path / "source")
    (source / "tests").mkdir()
    (source / "tests" / "test_nothing.py").write_text("")
    code = "from setuptools import build_meta; print(build_meta.build_sdist('..'))"
    run(sys.executable, "-c", code, cwd=str(source))
    (packed,) = tmp_path.glob("fastreid_rib-*.tar.gz")
    with tarfile.open(str(packed)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*CODE, *TEXTS} <= names and not any(name.startswith("tests") for name in names)
    wheels = []
    for number, origin in enumerate((source, packed)):
        folder = tmp_path / str(number)
        folder.mkdir()
        wheels.append(build_wheel(origin, folder, kernels="none")[0])
    assert wheels[0].name == wheels[1].name and names_in(wheels[0]) == names_in(wheels[1])
