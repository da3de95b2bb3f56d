"""A bounded reader of ELF shared libraries: what a library needs, and from whom.

Only 64-bit little-endian dynamic objects are read, which is what PyTorch ships for Linux. The file is mapped, every
offset is checked against its size, and nothing in it is executed. Works without binutils.

Layouts: System V ABI (ELF header, program headers, dynamic section) and the GNU symbol versioning tables.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from memfit.errors import InputFileError

MAX_SYMBOLS = 4_000_000
MAX_ENTRIES = 65_536
MAX_NAME = 65_536

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_DYN = struct.Struct("<qQ")
_SYM = struct.Struct("<IBBHQQ")
_VERNEED = struct.Struct("<HHIII")
_VERNAUX = struct.Struct("<IHHII")
_U32 = struct.Struct("<I")

_PT_LOAD, _PT_DYNAMIC = 1, 2
_ET_DYN = 3
_DT_NEEDED, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SONAME, _DT_HASH = 1, 5, 6, 10, 14, 4
_DT_RPATH, _DT_RUNPATH = 15, 29
_DT_GNU_HASH, _DT_VERSYM, _DT_VERNEED, _DT_VERNEEDNUM = 0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFFE, 0x6FFFFFFF
MACHINES = {62: "x86_64", 183: "aarch64"}


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Undefined:
    """One dynamic symbol that a library expects from elsewhere.

    Attributes:
        name: of the symbol.
        library: SONAME that the versioning table says it comes from, "" when unversioned.
        version: version tag, "" when unversioned.
        weak: the library also loads without it.
    """

    name: str
    library: str
    version: str
    weak: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedLibrary:
    """What one shared library says about itself.

    Attributes:
        machine: "x86_64", "aarch64" or "machine N".
        soname: its own name, "" when it states none.
        needed: SONAMEs that must be loaded with it, in order.
        search: RPATH or RUNPATH entries, unexpanded.
        undefined: symbols it expects from others.
        defined: names it exports.
    """

    machine: str
    soname: str
    needed: tuple[str, ...]
    search: tuple[str, ...]
    undefined: tuple[Undefined, ...]
    defined: frozenset[str]


def read_elf(path: Path) -> SharedLibrary:
    """Read the dynamic tables of one shared library.

    Raises:
        InputFileError: the file is missing, is not a 64-bit ELF shared library, or its tables contradict its size.
    """
    try:
        with _mapped(path) as data:
            return _Reader(data).read()
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror or error}"
        raise InputFileError(msg) from error
    except (_MalformedError, struct.error, UnicodeDecodeError) as error:
        msg = f"{path} is not a readable ELF shared library: {error}"
        raise InputFileError(msg) from error


class _MalformedError(Exception):
    """The file contradicts itself; the message says where."""


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    with path.open("rb") as file:
        if path.stat().st_size < _EHDR.size:
            yield file.read(_EHDR.size)
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


class _Reader:
    """One pass over a mapped file. Addresses are virtual, offsets are into the file."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data = data
        self.size = len(data)
        self.loads: list[tuple[int, int, int]] = []  # virtual address, file offset, bytes
        self.tags: dict[int, list[int]] = {}
        self.strings = (0, 0)

    def read(self) -> SharedLibrary:
        machine = self._headers()
        self.strings = (self._offset(self._tag(_DT_STRTAB)), self._tag(_DT_STRSZ))
        undefined, defined = self._symbols()
        runpath = [self._string(at) for tag in (_DT_RPATH, _DT_RUNPATH) for at in self.tags.get(tag, ())]
        return SharedLibrary(
            machine=machine,
            soname="".join(self._string(at) for at in self.tags.get(_DT_SONAME, ())[:1]),
            needed=tuple(self._string(at) for at in self.tags.get(_DT_NEEDED, ())),
            search=tuple(entry for text in runpath for entry in text.split(":") if entry),
            undefined=undefined,
            defined=defined,
        )

    def _headers(self) -> str:
        if self.size < _EHDR.size or self.data[:4] != b"\x7fELF":
            raise _MalformedError("no ELF header")
        ident, kind, machine, _, _, at, _, _, _, step, count, _, _, _ = _EHDR.unpack_from(self.data, 0)
        if ident[4] != 2 or ident[5] != 1:
            raise _MalformedError("only 64-bit little-endian files are read")
        if kind != _ET_DYN:
            raise _MalformedError("it is no shared object")
        if step != _PHDR.size:
            raise _MalformedError(f"program headers of {step} bytes")
        dynamic: tuple[int, int] | None = None
        for index in range(count):
            self._check(at + index * step, step, "program header")
            what, _, offset, address, _, bytes_, _, _ = _PHDR.unpack_from(self.data, at + index * step)
            if what == _PT_LOAD:
                self.loads.append((address, offset, bytes_))
            elif what == _PT_DYNAMIC:
                dynamic = offset, bytes_
        if dynamic is None:
            raise _MalformedError("no dynamic section")
        self._check(*dynamic, "dynamic section")
        for index in range(min(dynamic[1] // _DYN.size, MAX_ENTRIES)):
            tag, value = _DYN.unpack_from(self.data, dynamic[0] + index * _DYN.size)
            if tag == 0:
                break
            self.tags.setdefault(tag, []).append(value)
        return MACHINES.get(machine, f"machine {machine}")

    def _symbols(self) -> tuple[tuple[Undefined, ...], frozenset[str]]:
        count = self._symbol_count()
        if not count:
            return (), frozenset()
        at = self._offset(self._tag(_DT_SYMTAB))
        self._check(at, count * _SYM.size, "symbol table")
        versions = self._versions()
        tags = self._offset(self._tag(_DT_VERSYM)) if versions else 0
        if versions:
            self._check(tags, 2 * count, "symbol versions")
        undefined, defined = set(), set()
        for index in range(1, count):
            name_at, info, _, section, _, _ = _SYM.unpack_from(self.data, at + index * _SYM.size)
            if info >> 4 not in (1, 2):  # global, weak
                continue
            name = self._string(name_at)
            if section:
                defined.add(name)
                continue
            which = struct.unpack_from("<H", self.data, tags + 2 * index)[0] & 0x7FFF if versions else 0
            library, version = versions.get(which, ("", ""))
            undefined.add(Undefined(name=name, library=library, version=version, weak=info >> 4 == 2))
        return tuple(sorted(undefined)), frozenset(defined)

    def _symbol_count(self) -> int:
        """The dynamic section does not state the length of the symbol table; the hash tables imply it."""
        if _DT_SYMTAB not in self.tags:
            return 0
        if _DT_HASH in self.tags:
            at = self._offset(self._tag(_DT_HASH))
            self._check(at, 8, "hash table")
            count: int = _U32.unpack_from(self.data, at + 4)[0]
        elif _DT_GNU_HASH in self.tags:
            count = self._gnu_hash_count(self._offset(self._tag(_DT_GNU_HASH)))
        else:
            raise _MalformedError("no hash table")
        if count > MAX_SYMBOLS:
            raise _MalformedError(f"{count} symbols")
        return count

    def _gnu_hash_count(self, at: int) -> int:
        self._check(at, 16, "hash table")
        buckets, first, bloom, _ = struct.unpack_from("<IIII", self.data, at)
        table = at + 16 + 8 * bloom
        self._check(table, 4 * buckets, "hash buckets")
        last: int = max(struct.unpack_from(f"<{buckets}I", self.data, table), default=0)
        if last < first:  # nothing is exported, so nothing is hashed: linkers put the names right behind the symbols
            return max(0, self._offset(self._tag(_DT_STRTAB)) - self._offset(self._tag(_DT_SYMTAB))) // _SYM.size
        chain = table + 4 * buckets
        for index in range(last - first, MAX_SYMBOLS):
            self._check(chain + 4 * index, 4, "hash chain")
            if _U32.unpack_from(self.data, chain + 4 * index)[0] & 1:
                return int(first + index + 1)
        raise _MalformedError("endless hash chain")

    def _versions(self) -> dict[int, tuple[str, str]]:
        """Version index of a symbol to (library, version)."""
        if _DT_VERNEED not in self.tags or _DT_VERSYM not in self.tags:
            return {}
        found: dict[int, tuple[str, str]] = {}
        at = self._offset(self._tag(_DT_VERNEED))
        for _ in range(min(self._tag(_DT_VERNEEDNUM), MAX_ENTRIES)):
            self._check(at, _VERNEED.size, "version table")
            _, count, file_at, aux, following = _VERNEED.unpack_from(self.data, at)
            library, entry = self._string(file_at), at + aux
            for _ in range(count):
                self._check(entry, _VERNAUX.size, "version entry")
                _, _, index, name_at, step = _VERNAUX.unpack_from(self.data, entry)
                found[index & 0x7FFF] = (library, self._string(name_at))
                if not step:
                    break
                entry += step
            if not following:
                break
            at += following
        return found

    def _tag(self, tag: int) -> int:
        if tag not in self.tags:
            raise _MalformedError(f"dynamic tag {tag:#x} is missing")
        return self.tags[tag][0]

    def _offset(self, address: int) -> int:
        for start, offset, bytes_ in self.loads:
            if start <= address < start + bytes_:
                return offset + address - start
        raise _MalformedError(f"address {address:#x} lies in no segment")

    def _check(self, at: int, bytes_: int, what: str) -> None:
        if at < 0 or bytes_ < 0 or at + bytes_ > self.size:
            raise _MalformedError(f"the {what} lies beyond the end of the file")

    def _string(self, at: int) -> str:
        start, length = self.strings
        if at >= length:
            raise _MalformedError("a name lies outside the string table")
        self._check(start + at, 1, "string table")
        end = self.data.find(b"\0", start + at, min(start + length, start + at + MAX_NAME))
        if end < 0:
            raise _MalformedError("a name does not end")
        return self.data[start + at : end].decode("utf-8")
