"""C source for the functions that nobody wrote by hand."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable

from memfit.mirage.needs import NeededLibrary, Rule, rule_for

_HEAD = """/* Generated: functions of {soname} that are counted and logged, and do nothing. */
#include "mirage.h"
#define WEAK EXPORT __attribute__((weak))
#define FIRST(name) do {{ static char seen; if (!seen) {{ seen = 1; mirage_unknown(name); }} }} while (0)
"""


def generated_source(library: NeededLibrary) -> str:
    """The C source of one library: weak definitions, so that a hand-written function takes precedence."""
    kernels = library.family is not None and library.family.kernels
    lines = [_HEAD.format(soname=library.soname)]
    lines += [function_source(name, rule_for(name), kernels=kernels) for name in library.functions]
    return "\n".join(lines) + "\n"


def function_source(name: str, rule: Rule | None, *, kernels: bool) -> str:
    """One function that answers by a rule; success and nothing else without one."""
    sets = rule.sets if rule else {}
    parameters = ", ".join(f"long a{i}" for i in range(1, max(sets, default=0) + 1)) or "void"
    steps = [f'FIRST("{name}");']
    text = json.dumps(rule.text) if rule and rule.text is not None else None
    for argument, value in sets.items():
        word = "uint32_t" if rule and rule.bits == 32 else "uint64_t"
        what = {"handle": "mirage_handle()", "text": f"(uintptr_t){text}"}.get(str(value), str(value))
        steps.append(f"if (a{argument}) *({word} *)a{argument} = ({word}){what};")
    if kernels and (rule is None or rule.kernels is not False):
        steps.append("mirage_work();")
    unused = " ".join(f"(void)a{i};" for i in range(1, max(sets, default=0) + 1) if i not in sets)
    body = " ".join(filter(None, [unused, *steps]))
    if text is not None and "text" not in sets.values():
        return f"WEAK const char *{name}({parameters}) {{ {body} return {text}; }}"
    return f"WEAK long {name}({parameters}) {{ {body} return {rule.returns if rule else 0}; }}"


def version_script(functions: Iterable[tuple[str, str]]) -> str | None:
    """The linker's version script for (function, version) pairs; None when no function has a version.

    Everything that is not listed gets the most frequent version, as a library has one version for most of its names.
    """
    by_version: dict[str, list[str]] = defaultdict(list)
    for name, version in functions:
        if version:
            by_version[version].append(name)
    if not by_version:
        return None
    main, *others = sorted(by_version, key=lambda version: (-len(by_version[version]), version))
    script = [f"{version} {{ global: {'; '.join(by_version[version])}; }};" for version in others]
    return "\n".join([f"{main} {{ global: *; }};", *script]) + "\n"
