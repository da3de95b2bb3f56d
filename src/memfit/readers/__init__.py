"""Bounded readers for files that others wrote: size, depth and number caps, no code run, one clear error.

Every reader raises ``InputFileError`` for a file that is missing, too large or not what it claims to be.
"""

from memfit.readers.bounded import MAX_BYTES, MAX_DEPTH, check_tree, decode_text, read_text, show_path
from memfit.readers.json_text import parse_json
from memfit.readers.toml_text import parse_toml
from memfit.readers.tree import FORMATS, parse_text, read_tree
from memfit.readers.yaml_text import parse_yaml, resolve_plain

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_DEPTH",
    "check_tree",
    "decode_text",
    "parse_json",
    "parse_text",
    "parse_toml",
    "parse_yaml",
    "read_text",
    "read_tree",
    "resolve_plain",
    "show_path",
]
