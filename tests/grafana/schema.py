"""Checks a dashboard against Grafana's own types, those of its Foundation SDK.

    schema.py DASHBOARD.json

Two ways. Decoded into the SDK's objects and encoded again, nothing may be lost or altered. And each value is compared
with the declared type of its field, which decoding doesn't do: no field that the types don't have, no text where
a number belongs, no choice that Grafana doesn't offer, no panel, query or unit that it doesn't know. All faults are
printed, each with its place; the exit status tells whether there are any.
"""

import enum
import importlib
import inspect
import json
import sys
import types
import typing
from pathlib import Path

from grafana_foundation_sdk.cog import plugins, runtime
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import dashboard, prometheus, units

# What Grafana has and the SDK leaves out: fields of Prometheus' annotations (its data source's annotations.ts), whose
# target is a query; and what Grafana writes beside a variable's query.
OF_ANNOTATIONS = {"step": str, "titleFormat": str, "textFormat": str, "tagKeys": str, "useValueForTime": bool,
                  "target": dashboard.AnnotationTarget | prometheus.Dataquery}
OF_VARIABLES = {"definition": str}
UNITS = {value for value in vars(units).values() if isinstance(value, str)}


def main(path):
    source = json.loads(Path(path).read_text(encoding="utf-8"))
    plugins.register_default_plugins()
    faults = [*mistyped(source, dashboard.Dashboard, "dashboard"), *lost(source, encoded_again(source), "dashboard")]
    print("\n".join(faults))
    sys.exit(1 if faults else 0)


# Decoded and encoded


def encoded_again(source):
    """What the SDK makes of a dashboard. What it leaves out is kept from it."""
    rest = json.loads(json.dumps(source))
    taken = [{field: element.pop(field) for field in fields if field in element}
             for elements, fields in left_out(rest) for element in elements]
    again = json.loads(json.dumps(dashboard.Dashboard.from_json(rest), cls=JSONEncoder))
    for element, fields in zip((e for elements, _ in left_out(again) for e in elements), taken, strict=True):
        element |= fields
    return again


def left_out(source):
    return (source["annotations"]["list"], OF_ANNOTATIONS), (source["templating"]["list"], OF_VARIABLES)


def lost(source, again, place):
    """What isn't the same any more. Defaults may have been added, and null is as good as nothing."""
    if isinstance(source, dict) and isinstance(again, dict):
        for key, value in source.items():
            if value is not None:
                yield from lost(value, again.get(key), f"{place}.{key}")
    elif isinstance(source, list) and isinstance(again, list) and len(source) == len(again):
        for index, pair in enumerate(zip(source, again)):
            yield from lost(*pair, f"{place}[{index}]")
    elif source != again:
        yield f"{place}: {source!r} has become {again!r}"


# Values and types


def mistyped(value, declared, place):
    """The faults of a value of which the SDK declares this type."""
    origin = typing.get_origin(declared)
    if declared in (object, typing.Any):
        return
    if origin in (typing.Union, types.UnionType):
        yield from mistyped_in_union(value, typing.get_args(declared), place)
    elif origin is typing.Literal:
        if value not in typing.get_args(declared):
            yield f"{place}: {value!r} is none of {typing.get_args(declared)}"
    elif origin in (list, dict):
        yield from mistyped_elements(value, origin, typing.get_args(declared)[-1], place)
    elif declared is Dataquery:
        yield from mistyped(value, prometheus.Dataquery, place)
    elif inspect.isclass(declared) and issubclass(declared, enum.Enum):
        if value not in [choice.value for choice in declared]:
            yield f"{place}: {value!r} is none of {[choice.value for choice in declared]}"
    elif hasattr(declared, "to_json"):
        yield from mistyped_object(value, declared, place)
    elif not is_scalar(value, declared):
        yield f"{place}: {value!r} is no {declared.__name__}"


def is_scalar(value, declared):
    if declared is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is declared


def mistyped_in_union(value, choices, place):
    faults = [[] if value is None and choice is type(None) else list(mistyped(value, choice, place))
              for choice in choices if (value is None) == (choice is type(None))]
    if not faults:
        yield f"{place}: null is not allowed"
    elif [] not in faults:
        # Those of the choice that comes nearest.
        yield from min(faults, key=len)


def mistyped_elements(value, kind, declared, place):
    if not isinstance(value, kind):
        yield f"{place}: {value!r} is no {kind.__name__}"
        return
    for key, element in value.items() if kind is dict else enumerate(value):
        yield from mistyped(element, declared, f"{place}[{key}]")


def mistyped_object(value, declared, place):
    if not isinstance(value, dict):
        yield f"{place}: {value!r} is no {declared.__name__}"
        return
    fields = fields_of(declared)
    if declared is dashboard.AnnotationQuery:
        fields |= OF_ANNOTATIONS
    if declared is dashboard.VariableModel:
        fields |= OF_VARIABLES
    if declared is dashboard.Panel:
        fields |= fields_of_panel(value)
    for key, element in value.items():
        if key in fields:
            yield from mistyped(element, fields[key], f"{place}.{key}")
        else:
            yield f"{place}: {declared.__name__} has no field {key}"
    if declared is dashboard.Panel:
        yield from faults_of_panel(value, place)


class Field:
    """Stands for an attribute, to see under which name it is encoded."""

    def __init__(self, name):
        self.name = name


def fields_of(declared):
    """The names in JSON of a class's fields, each with its type."""
    hints = typing.get_type_hints(declared)
    instance = declared.__new__(declared)
    for name in hints:
        setattr(instance, name, Field(name))
    encoded = {key: value.name for key, value in instance.to_json().items() if isinstance(value, Field)}
    # What the constructor doesn't take is always the same, such as the type of one of several classes.
    taken = inspect.signature(declared).parameters
    return {key: hints[name] if name in taken else typing.Literal[str(getattr(declared(), name))]
            for key, name in encoded.items()}


# Panels, whose fields are of a kind of their own


def models_of(kind):
    """The module of a kind of panel, and whether there is one."""
    if runtime.panelcfg_config(kind) is None:
        return None
    return importlib.import_module(f"grafana_foundation_sdk.models.{kind.replace('-', '')}")


def fields_of_panel(panel):
    models = models_of(panel["type"])
    return {"options": models.Options} if models else {}


def faults_of_panel(panel, place):
    place = f"{place} ({panel.get('title')})"
    models = models_of(panel["type"])
    if models is None:
        yield f"{place}: there is no panel {panel['type']}"
        return
    config = panel["fieldConfig"]
    properties = fields_of(dashboard.FieldConfig)
    custom = fields_of(models.FieldConfig) if hasattr(models, "FieldConfig") else {}
    properties |= {f"custom.{name}": declared for name, declared in custom.items()}

    settings = [(name, value) for name, value in config["defaults"].items() if name != "custom"]
    settings += [(f"custom.{name}", value) for name, value in config["defaults"].get("custom", {}).items()]
    settings += [(p["id"], p["value"]) for override in config["overrides"] for p in override["properties"]]
    for name, value in settings:
        if name not in properties:
            yield f"{place}: there is no property {name}"
        else:
            yield from mistyped(value, properties[name], f"{place}: {name}")
        if name == "unit" and value not in UNITS:
            yield f"{place}: there is no unit {value}"


if __name__ == "__main__":
    main(sys.argv[1])
