"""Real beats and workers under faults, and a verdict by a checker that shares no code with them (docs/how-to/prove-it.md)."""

import sys
from pathlib import Path

# whoever imports this: python -m, pytest, or a worker
TESTS = Path(__file__).resolve().parents[1]
sys.path.extend(str(each) for each in (TESTS, TESTS / "processes") if str(each) not in sys.path)
