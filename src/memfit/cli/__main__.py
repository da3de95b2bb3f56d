"""``python -m memfit.cli`` is ``memfit``."""

from memfit.cli import main

main()
