"""Writing an export: into one folder, never over a file that is there unless told so."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from memfit.errors import MemfitError
from memfit.export.target import File


def write_files(files: Sequence[File], folder: str | os.PathLike[str], *, force: bool = False) -> tuple[Path, ...]:
    """Writes files into a folder, which is made when it is not there.

    Nothing is written when one of them cannot be: files that exist are found before.

    Args:
        files: what is written.
        folder: where.
        force: write over files that exist; links and folders are never written over.

    Returns:
        The paths, in the order of the files.

    Raises:
        MemfitError: a file exists, or the folder cannot be written to.
    """
    root = Path(folder)
    paths = [root / file.name for file in files]
    try:
        there = [path for path in paths if os.path.lexists(path)]
        odd = [path for path in there if path.is_symlink() or not path.is_file()]
        if odd:
            raise MemfitError(f"{_shown(odd)} is not a plain file: nothing is written", hint="choose another folder")
        if there and not force:
            many = f" and {len(there) - 1} more" if len(there) > 1 else ""
            raise MemfitError(
                f"{_shown(there)}{many} exist{'' if many else 's'}: nothing is written", hint="--force writes over it"
            )
        for file, path in zip(files, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.text, encoding="utf-8")
            if file.executable:
                path.chmod(path.stat().st_mode | 0o111)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        raise MemfitError(f"`{str(folder)[:200]}` cannot be written to: {reason}") from None
    return tuple(paths)


def _shown(paths: Sequence[Path]) -> str:
    return f"`{str(paths[0])[:200]}`"
