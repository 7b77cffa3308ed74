"""What setup.cfg cannot say: where the repository is, which is known where a release is made, and what an index page shows.

``LOCKBEAT_REPOSITORY`` is its address there, as the release's workflow sets it. Without it there are no project URLs, and the
links of the README, which lead to files beside it, are plain text: an index page has no files, and an address that nobody
has is worse than none.
"""

import os
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
REPOSITORY = os.environ.get("LOCKBEAT_REPOSITORY", "").rstrip("/")


def version() -> str:
    """Return the version, whose only place is setup.cfg."""
    parser = ConfigParser()
    parser.read(HERE / "setup.cfg", "utf-8")
    return parser["metadata"]["version"]


def readme() -> str:
    """Return the README as it can stand alone."""
    text = (HERE / "README.md").read_text("utf-8")
    if not REPOSITORY:
        text = re.sub(r"<picture>.*?</picture>\n*", "", text, flags=re.DOTALL)
        return re.sub(r"\[([^\[\]]+)\]\((?!https?://)[^()]*\)", r"\1", text)
    files, raw = (f"{REPOSITORY}/{kind}/v{version()}/" for kind in ("blob", "raw"))
    text = re.sub(r'((?:src|srcset)=")(?!https?://)', rf"\1{raw}", text)
    return re.sub(r"(\]\()(?!https?://|#)", rf"\1{files}", text)


URLS = {
    "Source": REPOSITORY,
    "Documentation": f"{REPOSITORY}/tree/v{version()}/docs",
    "Changelog": f"{REPOSITORY}/blob/v{version()}/CHANGELOG.md",
    "Issues": f"{REPOSITORY}/issues",
}

setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    project_urls=URLS if REPOSITORY else {},
)
