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

from fastreid_rib.ops import build, native

REPOSITORY = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
CODE = ("setup.py", "pyproject.toml", "MANIFEST.in")
TEXTS = ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff")


def run(*command, check=True, **options):
    result = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        **options,
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
    return run(*command, env=environment, check=check)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """With the kernels that g++ builds: nvcc takes longer, and the whole suite waits for it once.

    (tools/make_env.sh installs the plugin with all kernels.)
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_of_the_sources(tmp_path_factory.mktemp("source"))
    build_wheel(source, folder, kernels="cpu" if shutil.which("g++") else "none")
    (path,) = folder.glob("fastreid_rib-*.whl")
    return path


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

    def start(self, code="pass", *options, **environment):
        return run(self.python, *options, "-c", code, env=environment, cwd=str(self.site_packages))

    def files(self):
        return sorted(str(path) for path in self.site_packages.rglob("*"))


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "environment")


@pytest.fixture
def installed(environment, wheel):
    environment.pip("install", "--quiet", "--no-deps", "--no-index", wheel)
    return environment


def metadata(wheel):
    with zipfile.ZipFile(str(wheel)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode("utf-8"))


def test_version_is_the_packages_own(wheel):
    import fastreid_rib

    assert metadata(wheel)["Version"] == fastreid_rib.__version__


def test_the_metadata_say_what_it_is_and_where_it_comes_from(wheel):
    found = metadata(wheel)
    assert found["Name"] == "fastreid-rib" and "FastReID" in found["Summary"]
    assert found["License"] == "Apache-2.0" and found["Author"] == "The fastreid-rib maintainers"
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_payload().strip() == readme.strip()
    urls = dict(url.split(", ") for url in found.get_all("Project-URL"))
    assert set(urls) == {"Paper", "FastReID"}
    assert all(url in readme for url in urls.values())


def test_each_python_that_is_tested_is_in_the_metadata(wheel):
    found = metadata(wheel)
    ci = (REPOSITORY / ".github" / "workflows" / "tests.yml").read_text("utf-8")
    tested = set(re.findall(r'python: "(3\.\d+)"', ci))
    classifiers = "\n".join(found.get_all("Classifier"))
    claimed = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", classifiers, re.M)
    assert set(claimed) == tested and len(tested) == 6
    oldest = min(tested, key=lambda version: int(version.split(".")[1]))
    assert found["Requires-Python"] == f">={oldest}"


def test_it_can_change_neither_torch_nor_any_installed_version_downwards(wheel):
    requirements = metadata(wheel).get_all("Requires-Dist")
    names = {re.match(r"[\w.-]+", requirement).group(0) for requirement in requirements}
    assert names.isdisjoint({"torch", "torchvision", "fastreid"})
    for requirement in requirements:
        versions = requirement.split(";")[0]
        assert not re.search(r"[<=~!]", versions), f"{requirement} bounds the version from above"


def test_what_fastreid_imports_and_does_not_declare_is_brought(wheel):
    always = [r for r in metadata(wheel).get_all("Requires-Dist") if "extra ==" not in r]
    names = {re.match(r"[\w.-]+", requirement).group(0) for requirement in always}
    assert {"gdown", "matplotlib", "tqdm", "six"} <= names


def test_uninstalling_leaves_nothing_behind(environment, wheel):
    before = environment.files()
    environment.pip("install", "--quiet", "--no-deps", "--no-index", wheel)
    assert (environment.site_packages / "fastreid_rib.pth").is_file()
    assert (environment.site_packages / "fastreid_rib" / "py.typed").is_file()
    environment.start()  # writes bytecode
    environment.pip("uninstall", "--quiet", "--yes", "fastreid-rib")
    assert environment.files() == before


def names_in(wheel):
    with zipfile.ZipFile(str(wheel)) as archive:
        return set(archive.namelist())


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
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


def without_compilers(folder):
    """A PATH with the Python that pip builds with, and nothing else."""
    (folder / "bin").mkdir()
    return {"PATH": str(folder / "bin"), "CXX": "", "NVCC": "no-nvcc"}


def test_without_a_compiler_the_wheel_is_pure_and_says_so(tmp_path, environment):
    source = copy_of_the_sources(tmp_path / "source")
    for remains in (source, source / "build" / "lib"):  # of other builds, which may be of no use
        (remains / "fastreid_rib" / "ops" / "lib").mkdir(parents=True)
        (remains / "fastreid_rib" / "ops" / "lib" / "librib_cpu.so").write_bytes(b"old")
    result = build_wheel(source, tmp_path, kernels="", **without_compilers(tmp_path))
    (path,) = tmp_path.glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    assert not [name for name in names_in(path) if name.endswith(".so")]
    for kind in ("cpu", "cuda"):
        assert f"{kind} kernels left out: no compiler for the {kind} kernels" in result.stderr
    environment.pip("install", "--quiet", "--no-deps", "--no-index", path)
    assert environment.start("import fastreid_rib; print('imported')").stdout == "imported\n"


@pytest.mark.today_only
def test_kernels_that_are_asked_for_have_to_be_built(tmp_path):
    source = copy_of_the_sources(tmp_path / "source")
    environment = without_compilers(tmp_path)
    result = build_wheel(source, tmp_path, kernels="cpu", check=False, **environment)
    assert result.returncode != 0
    assert "FASTREID_RIB_KERNELS=cpu: no compiler for the cpu kernels" in result.stderr


@pytest.mark.today_only
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_an_editable_install_builds_into_the_source_tree(tmp_path, environment):
    source = copy_of_the_sources(tmp_path / "source")
    options = ("--quiet", "--no-deps", "--editable")
    environment.pip("install", *options, source, FASTREID_RIB_KERNELS="cpu")
    assert (source / "fastreid_rib" / "ops" / "lib" / "librib_cpu.so").is_file()
    code = "import fastreid_rib; print(fastreid_rib.__file__)"
    assert environment.start(code).stdout.strip() == str(source / "fastreid_rib" / "__init__.py")


@pytest.mark.today_only  # the published stack's own setuptools is too old to be called directly
def test_the_packed_sources_give_the_same_wheel(wheel, tmp_path):
    source = copy_of_the_sources(tmp_path / "source")
    tests = source / "tests"
    tests.mkdir()
    (tests / "test_nothing.py").write_text("")
    code = "from setuptools import build_meta; print(build_meta.build_sdist('..'))"
    run(sys.executable, "-c", code, cwd=str(source))
    (packed,) = tmp_path.glob("fastreid_rib-*.tar.gz")
    with tarfile.open(str(packed)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*CODE, *TEXTS} <= names and not any(name.startswith("tests") for name in names)
    build_wheel(packed, tmp_path, kernels="cpu" if shutil.which("g++") else "none")
    (again,) = tmp_path.glob("*.whl")
    assert again.name == wheel.name and names_in(again) == names_in(wheel)


@pytest.mark.parametrize("kind", build.KINDS)
def test_the_plugin_was_installed_with_every_kind_there_is_a_compiler_for(kind):
    if build.SOURCES.parent.parent.parent == REPOSITORY:
        pytest.skip("runs from the source tree, where nothing is installed")
    try:
        build.compiler(kind)
    except build.NoCompilerError as error:
        pytest.skip(str(error))
    library = native.Library(native.PACKAGE_FOLDER / build.library_name(kind))
    assert library.description.lower().startswith(kind)


LOADED = "import sys; print('fastreid_rib' in sys.modules, [type(f) for f in sys.meta_path])"


def test_the_interpreter_starts_with_the_hook_armed_and_nothing_heavy_loaded(installed):
    # There is nothing in this environment to load: the hook needs the standard library alone.
    result = installed.start(LOADED)
    assert result.stdout.startswith("True") and "fastreid_rib" in result.stdout
    assert result.stderr == ""


def test_disabled_the_hook_stays_out(installed):
    result = installed.start(LOADED, FASTREID_RIB_DISABLE="1")
    assert "fastreid_rib" not in result.stdout and result.stderr == ""


@pytest.mark.parametrize("fault", ["gone", "half gone", "syntax error"])
def test_a_broken_package_never_breaks_the_interpreter(installed, fault):
    package = installed.site_packages / "fastreid_rib"
    if fault == "gone":
        shutil.rmtree(str(package))
    elif fault == "half gone":
        (package / "activation.py").unlink()
    else:
        (package / "__init__.py").write_text("def (", encoding="utf-8")
    result = installed.start("print('started')")
    assert (result.stdout, result.stderr) == ("started\n", "")
