"""Set up the development environment with the extension of a finished wheel, in place of building another.

    python tools/install_wheel.py WHEEL

Afterwards things are as after `make install`, but that tests run on what is shipped: the extension stands in
`python/edgewise`, and this environment imports the package from there.
"""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from check_baseline import EXTENSION

SOURCES = Path(__file__).resolve().parents[1] / "python"
EXTRAS = "dev,video"


def main() -> None:
    [wheel] = sys.argv[1:]
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, "--force-reinstall", "--no-deps", wheel], check=True)
    subprocess.run([*pip, f"{wheel}[{EXTRAS}]"], check=True)
    site = Path(sysconfig.get_path("purelib"))
    shutil.rmtree(site / "edgewise")
    (site / "edgewise.pth").write_text(f"{SOURCES}\n")
    # By another name first: the old one may be in use.
    place, new = SOURCES / EXTENSION, SOURCES / f"{EXTENSION}.new"
    with zipfile.ZipFile(wheel) as archive:
        new.write_bytes(archive.read(EXTENSION))
    new.replace(place)


if __name__ == "__main__":
    main()
