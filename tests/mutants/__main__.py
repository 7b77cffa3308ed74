"""``python -m tests.mutants [--only WORD]``: which mutants of the product the suite notices."""

from __future__ import annotations

import argparse
import sys

from .listed import MUTANTS
from .runner import control, verdict


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="those whose name or file has this in it")
    parser.add_argument("--no-control", action="store_true", help="do not run the same tests without a mutant first")
    options = parser.parse_args()
    mutants = [each for each in MUTANTS if options.only in each.name or options.only in each.file]
    if not mutants:
        parser.error(f"no mutant has {options.only!r} in its name or file")
    if not options.no_control:
        status, output = control(mutants)
        if status:
            print(output, "\nwithout a mutant, too, these tests fail: they can tell nothing")
            return 2
    counts = {"killed": 0, "survived": 0, "error": 0}
    print("| mutant | in | verdict | s |\n|---|---|---|---|")
    for mutant in mutants:
        what, seconds, output = verdict(mutant)
        counts[what] += 1
        print(f"| {mutant.name} | `{mutant.file}` | {what} | {seconds:.0f} |", flush=True)
        if what == "error":
            print(output, file=sys.stderr)
    print("\n" + ", ".join(f"{count} {what}" for what, count in counts.items()))
    return int(counts["killed"] != len(mutants))


if __name__ == "__main__":
    sys.exit(main())
