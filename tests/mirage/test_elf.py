"""The ELF reader: what gcc writes is read; what is damaged ends in one error."""

from __future__ import annotations

import shutil
import struct
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.errors import InputFileError
from memfit.mirage.elf import Undefined, read_elf

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


def compile_library(folder, name, source, *options):
    (folder / f"{name}.c").write_text(source)
    target = folder / f"{name}.so"
    command = ["gcc", "-shared", "-fPIC", "-nostdlib", "-o", str(target), str(folder / f"{name}.c"), *options]
    subprocess.run(command, check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A library with two versions of names, and one that uses it."""
    folder = tmp_path_factory.mktemp("elf")
    (folder / "map").write_text("OLD_1 { global: first; };\nNEW_2 { global: second; } OLD_1;\n")
    base = compile_library(
        folder,
        "base",
        "int first(void){return 1;} int second(void){return 2;}",
        "-Wl,-soname,libbase.so.3",
        f"-Wl,--version-script={folder / 'map'}",
    )
    user = compile_library(
        folder,
        "user",
        "int first(void); int second(void); int stray(void); extern int maybe __attribute__((weak));"
        "int own(void){return first() + second() + stray() + (&maybe ? 1 : 0);}",
        str(base),
        "-Wl,-soname,libuser.so",
        "-Wl,-rpath,$ORIGIN/a:$ORIGIN/b",
        "-Wl,--allow-shlib-undefined",
    )
    return base, user


@needs_gcc
def test_names_versions_and_needs_are_read(pair):
    base, user = (read_elf(path) for path in pair)
    assert base.soname == "libbase.so.3"
    assert {"first", "second"} <= base.defined
    assert user.needed == ("libbase.so.3",)
    assert user.search == ("$ORIGIN/a", "$ORIGIN/b")
    assert "own" in user.defined
    assert set(user.undefined) >= {
        Undefined(name="first", library="libbase.so.3", version="OLD_1", weak=False),
        Undefined(name="second", library="libbase.so.3", version="NEW_2", weak=False),
        Undefined(name="stray", library="", version="", weak=False),
        Undefined(name="maybe", library="", version="", weak=True),
    }


@needs_gcc
@pytest.mark.parametrize("style", ["gnu", "sysv", "both"])
def test_both_kinds_of_hash_tables_give_the_symbols(tmp_path, style):
    library = read_elf(
        compile_library(
            tmp_path, "one", "int other(void); int mine(void){return other();}", f"-Wl,--hash-style={style}"
        )
    )
    assert "mine" in library.defined
    assert [symbol.name for symbol in library.undefined] == ["other"]


@needs_gcc
def test_a_library_that_exports_nothing_still_tells_what_it_needs(tmp_path):
    hidden = '__attribute__((visibility("hidden")))'
    source = f"int other(void); static int mine(void){{return other();}} void *keep {hidden} = mine;"
    library = read_elf(compile_library(tmp_path, "none", source, "-Wl,--hash-style=gnu"))
    assert [symbol.name for symbol in library.undefined] == ["other"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no ELF header"),
        (b"#!/bin/sh\n" * 20, "no ELF header"),
        (b"\x7fELF" + b"\1\1" + bytes(200), "64-bit"),
        (b"\x7fELF" + b"\2\2" + bytes(200), "64-bit"),
        (b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 2, 62) + bytes(200), "no shared object"),
        (b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 3, 62) + bytes(200), "program headers"),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path, content, why):
    path = tmp_path / "file.so"
    path.write_bytes(content)
    with pytest.raises(InputFileError, match=why):
        read_elf(path)


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputFileError, match="cannot read"):
        read_elf(tmp_path / "absent.so")
    with pytest.raises(InputFileError, match="cannot read"):
        read_elf(tmp_path)


@needs_gcc
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_never_ends_in_anything_but_a_result_or_an_input_error(pair, data):
    content = bytearray(pair[1].read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        # the first pages hold the headers and all dynamic tables
        at = data.draw(st.integers(4, min(len(content), 0x700) - 8))
        content[at : at + 4] = data.draw(
            st.sampled_from([bytes(4), b"\xff" * 4, b"\1\0\0\0", b"\0\0\0\x80", b"\7\6\5\4"])
        )
    del content[data.draw(st.sampled_from([len(content), 64, 0x200, 0x480, 0x700])) :]
    path = pair[1].with_name("damaged.so")
    path.write_bytes(content)
    try:
        read_elf(path)
    except InputFileError as error:
        assert "damaged.so" in error.message  # noqa: PT017 - either outcome is right
