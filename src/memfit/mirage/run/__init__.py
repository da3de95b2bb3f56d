"""A dry run: the user's own script as a child process on the imaginary GPU, watched, limited and reported.

``dryrun`` starts the script with the hooks of ``hook/`` on its module path, reads what they left behind, and answers
with the same Trace, Ledger and Answer as ``memfit trace``.
"""

from __future__ import annotations

from memfit.mirage.run.dryrun import DryRun, dryrun, dryrun_stages
from memfit.mirage.run.options import RunOptions

__all__ = ["DryRun", "RunOptions", "dryrun", "dryrun_stages"]
