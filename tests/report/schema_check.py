"""As much of JSON Schema as the shipped schemas use; an unknown keyword is an error, so that nothing goes unchecked."""

import math

_TYPES = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
}
_TOLD = {"$schema", "$defs", "title", "description"}


def faults(value, schema, root=None, path="$"):
    """Every way in which the value breaks the schema, as text."""
    root = root or schema
    found = []
    for word, rule in schema.items():
        found += _check(word, rule, value, schema, root, path)
    return found


def _check(word, rule, value, schema, root, path):
    match word:
        case _ if word in _TOLD:
            return []
        case "$ref":
            return faults(value, root["$defs"][rule.removeprefix("#/$defs/")], root, path)
        case "type":
            names = [rule] if isinstance(rule, str) else rule
            return [] if any(_TYPES[n](value) for n in names) else [f"{path}: {value!r} is not {rule}"]
        case "const":
            return [] if value == rule and type(value) is type(rule) else [f"{path}: {value!r} is not {rule!r}"]
        case "enum":
            return [] if value in rule else [f"{path}: {value!r} is not one of {rule}"]
        case "minimum":
            return [] if value is None or value >= rule else [f"{path}: {value} < {rule}"]
        case "maximum":
            return [] if value is None or value <= rule else [f"{path}: {value} > {rule}"]
        case "minItems":
            return [] if len(value) >= rule else [f"{path}: fewer than {rule}"]
        case "maxItems":
            return [] if len(value) <= rule else [f"{path}: more than {rule}"]
        case "required" | "properties" | "additionalProperties" if not isinstance(value, dict):
            return []  # as JSON Schema has it: these say nothing about null, `type` does
        case "required":
            return [f"{path}: {name} is missing" for name in rule if name not in value]
        case "properties":
            inner = [faults(value[n], s, root, f"{path}.{n}") for n, s in rule.items() if n in value]
            return [fault for part in inner for fault in part]
        case "additionalProperties":
            more = [n for n in value if n not in schema.get("properties", {})]
            if rule is False:
                return [f"{path}: {n} is not known" for n in more]
            return [fault for n in more for fault in faults(value[n], rule, root, f"{path}.{n}")]
        case "items":
            inner = [faults(item, rule, root, f"{path}[{i}]") for i, item in enumerate(value)]
            return [fault for part in inner for fault in part]
    return [f"{path}: the schema says {word}, which is not checked"]


def surface(schema, path=""):
    """Every property of a schema as a line: dotted path, type, and whether it is always there."""
    lines = []
    for name, spec in sorted(schema.get("properties", {}).items()):
        kind = spec.get("type") or ("$ref" in spec and spec["$ref"]) or ("const" in spec and "const") or "any"
        kind = "enum " + ",".join(spec["enum"]) if "enum" in spec else kind
        always = "" if name in schema.get("required", ()) else " (may be missing)"
        lines.append(f"{path}{name}: {kind if isinstance(kind, str) else ' or '.join(kind)}{always}")
        lines += surface(spec, f"{path}{name}.")
        lines += surface(spec.get("items", {}), f"{path}{name}[].")
    for name, spec in sorted(schema.get("$defs", {}).items()):
        lines += surface(spec, f"{path}#{name}.")
    return lines
