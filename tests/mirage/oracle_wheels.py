"""The allocator binaries of released torch wheels, without downloading the wheels.

A wheel is a zip file: its directory stands at the end, so three or four HTTP range requests are enough to pull
``libc10_cuda.so``, ``libc10.so`` and the c10 headers (about 3 MB) out of 0.5 to 0.9 GB. The members lie in
``~/.cache/memfit/torch/VERSION`` (``MEMFIT_CACHE`` moves it) and are read from there ever after.
"""

# ruff: noqa: T201 - a command that prints
from __future__ import annotations

import html
import io
import os
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

RELEASES = ("2.1.2", "2.4.1", "2.6.0", "2.9.1", "2.11.0", "2.12.1", "2.13.0", "2.15.0")
WANTED = re.compile(
    r"torch/lib/libc10(_cuda)?\.so|torch/include/c10/.*|torch/include/torch/headeronly/.*"
    r"|torch\.libs/.*|torch/lib/lib(gomp|nvToolsExt)[^/]*"
)
MAX_MEMBER = 64 << 20
CHUNK = 1 << 20


class OracleUnavailableError(Exception):
    """The binaries cannot be had here; the message says why."""


def cache_dir() -> Path:
    """The folder of everything downloaded or built: ``$MEMFIT_CACHE`` or ``~/.cache/memfit``."""
    return Path(os.environ.get("MEMFIT_CACHE", "") or Path.home() / ".cache" / "memfit")


def fetch(version: str) -> Path:
    """The folder that holds the wanted members of one release; downloads them the first time.

    Raises:
        OracleUnavailableError: no network, no such release for this platform, or a server without range requests.
    """
    target = cache_dir() / "torch" / version
    if (target / "complete").exists():
        return target
    try:
        url = wheel_url(version)
        with zipfile.ZipFile(io.BufferedReader(RangeFile(url), CHUNK)) as wheel:
            for member in wheel.infolist():
                if WANTED.fullmatch(member.filename) and member.file_size <= MAX_MEMBER:
                    wheel.extract(member, target)
    except (OSError, zipfile.BadZipFile) as error:
        raise OracleUnavailableError(f"torch {version}: {error}") from error
    if not (target / "torch/lib/libc10_cuda.so").exists():
        raise OracleUnavailableError(f"torch {version}: the wheel holds no libc10_cuda.so")
    (target / "complete").write_text(url.rsplit("/", 1)[-1] + "\n")
    return target


def default_index() -> list[str]:
    """The index that pip asks when nothing is configured, as its help tells."""
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--help"],
        capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "1000"},
    )  # fmt: skip
    return re.findall(r"\(default:? (https?://[^)\s]+)\)", shown.stdout)[:1]


def index_urls() -> list[str]:
    """The package indexes pip is configured with, then its default."""
    urls = []
    for key in ("global.index-url", "install.index-url"):
        shown = subprocess.run(
            [sys.executable, "-m", "pip", "config", "get", key], capture_output=True, text=True, check=False
        )
        if shown.returncode == 0 and shown.stdout.strip().startswith("http"):
            urls.append(shown.stdout.strip().rstrip("/"))
    if os.environ.get("PIP_INDEX_URL", "").startswith("http"):
        urls.append(os.environ["PIP_INDEX_URL"].rstrip("/"))
    return list(dict.fromkeys([*urls, *default_index()]))


def wheel_url(version: str) -> str:
    """Where the Linux x86-64 wheel of a release lies (any CPython: the allocator does not depend on it)."""
    problem = "no index"
    for index in index_urls():
        page_url = f"{index}/torch/"
        try:
            with urllib.request.urlopen(page_url, timeout=60) as page:
                text = page.read(64 << 20).decode("utf-8", "replace")
        except OSError as error:
            problem = f"the package index did not answer ({error})"
            continue
        wheel = re.compile(rf"torch-{re.escape(version)}-cp3(10|11|12)-cp3\1-manylinux[^/]*x86_64\.whl")
        links = (html.unescape(link) for link in re.findall(r'href="([^"]+)"', text))
        found = sorted(link for link in links if wheel.search(urllib.parse.unquote(link)))
        if found:
            return urllib.parse.urljoin(page_url, found[0]).split("#")[0]
        problem = f"the package index has no Linux x86-64 wheel of torch {version}"
    raise OracleUnavailableError(f"torch {version}: {problem}")


class RangeFile(io.RawIOBase):
    """A file on an HTTP server, read by range requests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.position = 0
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=60) as answer:
            self.size = int(answer.headers["Content-Length"])

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def readinto(self, buffer) -> int:
        first, last = self.position, min(self.size, self.position + len(buffer)) - 1
        if last < first:
            return 0
        request = urllib.request.Request(self.url, headers={"Range": f"bytes={first}-{last}"})
        for attempt in (1, 2, 3):
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    if answer.status != 206:
                        raise OSError("the server of the wheel answers no range requests")
                    data = answer.read(last - first + 1)
                break
            except OSError:
                if attempt == 3:
                    raise
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


if __name__ == "__main__":
    for release in sys.argv[1:] or RELEASES:
        print(release, fetch(release))
