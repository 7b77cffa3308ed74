"""Earlier releases of the package, from the repository's own history: users update from them."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

import pytest

ROOT = Path(__file__).parent.parent

#: The last commit of each. The next release adds its own here.
COMMITS: Final = {"0.1.0": "95ef1a06d7cf41a9640a55638b400425a709ab95"}


def lay(release: str, directory: Path) -> Path:
    """Lay the package of an earlier release into a directory, to be the first on a process's path. Skip where it is not known."""
    commit = COMMITS[release]
    git = shutil.which("git")
    known = git and subprocess.run([git, "-C", ROOT, "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True)
    if not known or known.returncode != 0:
        pytest.skip(f"release {release} is not here: this is no clone with all of its history")
    packed = subprocess.run([git, "-C", ROOT, "archive", commit, "celery_lockbeat"], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(directory, filter="data")
    return directory
