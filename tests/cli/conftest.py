"""Documents that commands write are held against the schemas with the checker of the report tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
