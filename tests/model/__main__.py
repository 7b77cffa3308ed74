"""``python -m tests.model``: search the models of docs/protocol.md whole, and show what their mutations break."""

from __future__ import annotations

import argparse
import sys

from .checker import explore
from .configurations import ASSUMED, HOLD, MUTATED, WHOLE


def main() -> int:
    argparse.ArgumentParser(prog="python -m tests.model", description=__doc__).parse_args()
    failed = False
    for what, model in {**HOLD, **WHOLE}.items():
        found = explore(model)
        failed |= found.broken is not None
        print(f"{what}: {found}", flush=True)
    for what, (model, _) in {**MUTATED, **ASSUMED}.items():
        found = explore(model)
        failed |= found.broken is None
        print(f"{what}: {found}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
