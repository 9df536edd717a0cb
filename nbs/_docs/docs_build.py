"""`make docs`: the site, from the notebooks, without the network. It ends with a look at every link.

    python nbs/_docs/docs_build.py [--links]      # --links: only those of the notebooks and texts as they are written

The pages are in _docs/html, begin with index.html there; what Sphinx was given is in _docs/pages. No notebook is run.
"""

import configparser
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from docs_links import broken_in_site, broken_in_texts  # noqa: E402
from docs_pages import stage  # noqa: E402


def sphinx(
    root: Path,  # of the project
    pages: Path,  # what `stage` wrote
    site: Path,  # for the HTML
) -> str:  # empty, or what went wrong
    "Make HTML of the pages; a warning is a fault."
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-j", "2", "-c", str(HERE), "-d", str(site.with_name("cache")), str(pages), str(site)]
    environment = {**os.environ, "DOCS_ROOT": str(root), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return (done.stdout or f"Sphinx ended with status {done.returncode}") if done.returncode else ""


def build(
    root: Path,  # of the project
    target: Path,  # folder for pages and site
) -> tuple[list[str], int]:  # what is wrong; how many links the site has
    "The whole site."
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(root / "settings.ini", encoding="utf-8")
    if faults := broken_in_texts(root):
        return faults, 0
    shutil.rmtree(target / "html", ignore_errors=True)
    shutil.rmtree(target / "cache", ignore_errors=True)
    stage(root, target / "pages", settings["DEFAULT"]["lib_name"])
    if fault := sphinx(root, target / "pages", target / "html"):
        return fault.splitlines(), 0
    return broken_in_site(target / "html")


def main(arguments: list[str]) -> int:
    root, start = HERE.parent.parent, time.monotonic()
    faults, links = (broken_in_texts(root), 0) if arguments == ["--links"] else build(root, root / "_docs")
    for fault in faults:
        print(fault)
    if faults:
        print(f"{len(faults)} faults. Mend the notebooks or texts they are in, and run it again.")
    else:
        print(f"{links} links, none broken; {time.monotonic() - start:.0f} s. Open _docs/html/index.html." if links else "all links in notebooks and texts resolve.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
