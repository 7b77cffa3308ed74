"""``python -m tests.faults --minutes N --seed S``"""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "processes")]

from faults.run import main  # noqa: E402  found only now

sys.exit(main())
