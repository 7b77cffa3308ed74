"""``python -m tests.faults --minutes N --seed S``"""

import sys

from faults.run import main

sys.exit(main())
