"""Installs packages of a vendor: their metadata and modules, as pip would leave them, on a path."""

from __future__ import annotations

import contextlib
import importlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent / "examples" / "plugin"


def install(directory: Path, name: str, entry_points: str, source: str = "") -> None:
    """Put a distribution with one module, as pip would leave it, into a directory."""
    info = directory / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    (directory / f"{name.replace('-', '_')}.py").write_text(source)


def install_example(directory: Path) -> None:
    """Put the package of examples/plugin into a directory, with the entry points of its pyproject.toml."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in found.items())
        for group, found in project["project"]["entry-points"].items()
    )
    (module,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    install(directory, project["project"]["name"], points, (EXAMPLE / module).read_text())


@contextlib.contextmanager
def site_directory(directory: Path) -> Iterator[Path]:
    """Put a directory on the path, and forget afterwards what was imported from it."""
    directory.mkdir()
    before = set(sys.modules)
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        yield directory
    finally:
        sys.path.remove(str(directory))
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(directory)):
                del sys.modules[name]
