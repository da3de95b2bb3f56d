"""The job: the one document that every command takes and gives. Read, check, complete, describe, write.

The table in ``memfit.job.fields`` says everything about each field; the rest derives from it.
"""

from memfit.job.completing import complete
from memfit.job.describing import Row, describe, schema
from memfit.job.fields import BY_NAME, BY_PATH, FIELDS, SCHEMA, Field
from memfit.job.loading import from_kwargs, load
from memfit.job.parsing import parse
from memfit.job.types import Completed, Hardware, Job, Lora, Model, Strategy, Task
from memfit.job.writing import dumps, to_dict

__all__ = [
    "BY_NAME",
    "BY_PATH",
    "FIELDS",
    "SCHEMA",
    "Completed",
    "Field",
    "Hardware",
    "Job",
    "Lora",
    "Model",
    "Row",
    "Strategy",
    "Task",
    "complete",
    "describe",
    "dumps",
    "from_kwargs",
    "load",
    "parse",
    "schema",
    "to_dict",
]
