"""The page on experts.yaml, from its JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from scripts.reference.markdown import bounds, code, sentence, table
from scripts.reference.sources import declaration_schema

TITLE = "experts.yaml"
ABOUT = "Every section and key of the configuration file, with type, default and meaning."

_PAGE = """\
# experts.yaml

`experts.yaml` configures the service: categories, experts, the assignment and all policies. `COE_CONFIG` names
another file. Unknown keys are errors. `coe check` reports every mistake with its line and the nearest valid key.

The smallest complete file declares one category, one expert and its assignment:

```yaml
version: 1
categories:
  - name: general
    description: All conversations
experts:
  - name: generalist
    model: my-model
    runtime: external
    base_url: http://127.0.0.1:8000/v1
assignment:
  general: generalist
```

Write secrets as `${{NAME}}` or `os.environ/NAME`; the value is read from the environment. Editors complete and check
the file with its [JSON schema](../experts.schema.json), which `coe check --schema` prints.

## Top level

{top}
{sections}"""

Schema = dict[str, Any]


def page() -> str:
    """The page, in Markdown."""
    schema = declaration_schema()
    sections = "".join(_section(path, model, schema) for path, model in _models(schema, schema, ""))
    return _PAGE.format(top=_keys(schema, schema, ""), sections=sections)


@cache
def key_paths() -> frozenset[str]:
    """The dotted path of every key, such as `policy.exploration.rate`; entries of lists and mappings have its path."""
    schema = declaration_schema()
    found = set(schema["properties"])
    for path, model in _models(schema, schema, ""):
        found |= {f"{path}.{name}" for name in model["properties"]}
    return frozenset(found)


def _models(model: Schema, schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Every section below a model with its path, depth first."""
    for name, value in model["properties"].items():
        if (below := _model_of(value, schema)) is not None:
            place = f"{path}.{name}" if path else name
            yield place, below
            yield from _models(below, schema, place)


def _model_of(value: Schema, schema: Schema) -> Schema | None:
    """The section that a key holds, alone, in a list or in a mapping; None for a plain value."""
    if (target := value.get("$ref")) is not None:
        found: Schema = schema["$defs"][target.rpartition("/")[2]]
        return found if "properties" in found else None
    items = (value["items"],) if "items" in value else ()
    below = (*value.get("anyOf", ()), *items, *value.get("patternProperties", {}).values())
    return next((model for one in below if (model := _model_of(one, schema)) is not None), None)


def _section(path: str, model: Schema, schema: Schema) -> str:
    level = "#" * (2 + path.count("."))
    about = sentence(model.get("description", ""))
    return f"\n{level} {path}\n\n{about}\n\n{_keys(model, schema, path)}\n"


def _keys(model: Schema, schema: Schema, path: str) -> str:
    required = model.get("required", [])
    rows = []
    for name, value in model["properties"].items():
        default = _default(value, required=name in required)
        rows.append((code(name), _type(value, schema), default, _meaning(name, value, schema, path)))
    return table(("key", "type", "default", "meaning"), rows)


def _meaning(name: str, value: Schema, schema: Schema, path: str) -> str:
    if text := value.get("description"):
        return sentence(text)
    if (below := _model_of(value, schema)) is None:
        return ""
    place = f"{path}.{name}" if path else name
    return f"{sentence(below.get('description', ''))} See [{place}](#{place.replace('.', '')})."


def _type(value: Schema, schema: Schema) -> str:
    if (target := value.get("$ref")) is not None:
        return _type(schema["$defs"][target.rpartition("/")[2]], schema)
    if "properties" in value:
        return "section"
    if options := value.get("anyOf"):
        return " or ".join(dict.fromkeys(_type(option, schema) for option in options if option.get("type") != "null"))
    if "enum" in value:
        return " or ".join(code(str(word)) for word in value["enum"])
    if "const" in value:
        return code(str(value["const"]))
    return _plain_type(value, schema)


def _plain_type(value: Schema, schema: Schema) -> str:
    kind = value.get("type")
    if kind == "array":
        if parts := value.get("prefixItems"):
            return "[" + ", ".join(_type(part, schema) for part in parts) + "]"
        return f"list of {_type(value['items'], schema)}"
    if kind == "object":
        return "mapping" if _model_of(value, schema) is None else "mapping of section"
    return {"string": "text"}.get(kind or "string", str(kind)) + bounds(value)


def _default(value: Schema, *, required: bool) -> str:
    if required:
        return "required"
    default = value.get("default")
    if default is None or default in ([], {}) or isinstance(default, dict):
        return ""
    return code(json.dumps(default).strip('"'))
