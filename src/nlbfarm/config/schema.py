"""A JSON Schema of the configuration, for editors; made from the models, so that it says what they do.

``docs/nlbfarm.schema.json`` is what ``nlbfarm-node check --schema`` prints. It knows keys, types, words and
bounds. What has to fit together between tables, and what is installed on a host, only ``check`` sees.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import textwrap
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from nlbfarm.config.checkers import CHECKER_TYPES, PluginChecker
from nlbfarm.config.draft import LISTS, SINGLE, field_reader
from nlbfarm.config.root import FarmConfig
from nlbfarm.config.services import KINDS, ONLY, Service
from nlbfarm.config.types import Described, Section

__all__ = ["json_schema", "schema_text"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ATTRIBUTE = re.compile(r"^(\w+(?:, \w+)*): (.+(?:\n +.+)*)", re.MULTILINE)


def json_schema() -> dict[str, Any]:
    """Return the schema of a configuration file."""
    found: dict[str, Any] = FarmConfig.model_json_schema(schema_generator=_Generator)
    return {"$schema": _DIALECT} | found | {"title": "nlbfarm", "description": "The configuration of a farm."}


def schema_text() -> str:
    """Return the schema as it is published."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


class _Generator(GenerateJsonSchema):
    """pydantic's, with what our validators and docstrings say."""

    schema_dialect = _DIALECT

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        found = super().function_before_schema(schema)
        validator: object = schema["function"]["function"]
        return validator.described(found) if isinstance(validator, Described) else found

    def enum_schema(self, schema: core_schema.EnumSchema) -> JsonSchemaValue:
        found = super().enum_schema(schema)
        return {key: found[key] for key in ("type", "enum")}  # the keys that have it say what it is for

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])  # TOML has no null: such a key is left out

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])  # added below, in the spelling of the file

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        found, model = super().model_schema(schema), schema["cls"]
        if model is FarmConfig:
            for key in (*SINGLE, *LISTS):
                found["properties"][key]["description"] = _about(key)
        elif issubclass(model, Section):
            _complete(model, found)
        return found


def _about(key: str) -> str:
    """Return what a table of the file is for: the first line of the module that has its name."""
    page = inspect.getdoc(importlib.import_module(f"nlbfarm.config.{key}")) or ""
    return page.splitlines()[0].replace("``", "")


def _complete(model: type[Section], found: JsonSchemaValue) -> None:
    """Add descriptions, defaults, and what the validators of the whole table say."""
    table = next((key for key, one in (*SINGLE.items(), *LISTS.items()) if one is model), None)
    first = _plain((inspect.getdoc(model) or "").split("\n\n")[0])
    found["description"] = _about(table) if table is not None else first
    said = {"type": first} | _attributes(model)
    for key, info in model.model_fields.items():
        entry = found["properties"][key]
        about = [said.get(key), entry.pop("description", None)]
        if text := " ".join(part for part in about if part):
            entry["description"] = text
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        if default is not None:
            entry["default"] = field_reader(model, key).dump_python(default, mode="json")
    if model in CHECKER_TYPES.values():
        found["required"] = [*found["required"], "type"]  # it says which of the tables this is
        found["properties"]["type"].pop("default")
    elif model is PluginChecker:
        found["properties"]["type"] |= {"type": "string", "not": {"enum": list(CHECKER_TYPES)}}
        found["properties"]["type"].pop("anyOf")  # names of ours are not for a plug-in
    elif model is Service:
        found["properties"]["type"] |= {"type": "string"}
        found["properties"]["type"].pop("anyOf")
        found["oneOf"] = [{"required": [kind]} for kind in KINDS]
        found["dependentRequired"] = {key: [kind] for key, kind in ONLY.items()}


def _attributes(model: type[Section]) -> dict[str, str]:
    """Return what the docstrings of a model, and of those that it is made from, say of their attributes."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        _, _, listed = (inspect.getdoc(kind) or "").partition("Attributes:\n")
        if issubclass(kind, Section):
            for names, text in _ATTRIBUTE.findall(textwrap.dedent(listed)):
                found |= dict.fromkeys(names.split(", "), _plain(text))
    return found


def _plain(text: str) -> str:
    quoted = re.sub(r"``(.+?)``", lambda match: match[1] if '"' in match[1] else f'"{match[1]}"', text)
    return " ".join(quoted.split())
