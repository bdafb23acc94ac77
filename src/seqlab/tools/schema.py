"""`seqlab schema`: a JSON schema of the config files, for editors, from the constructors' types."""

import inspect
import os
import re
import sys
from contextlib import suppress
from typing import Any, get_type_hints

from omegaconf import OmegaConf
from pydantic import ConfigDict, PydanticUserError, TypeAdapter

from seqlab.engine.construct import find_class, parameters
from seqlab.engine.settings import Settings
from seqlab.engine.steps import Steps
from seqlab.engine.usage import commented, read
from seqlab.tools.shapes import CONF

Schema = dict[str, Any]
Comments = dict[str, str]  # of config files' lines, by their keys
Targets = dict[str, dict[str, Comments]]

#: What may stand in place of any value: an interpolation, a value to be given, a class's node.
OPEN = [
    {"type": "string", "pattern": r"\$\{|^\?{3}$"},
    {"type": "object", "required": ["_target_"]},
]

#: Arguments that the engine gives, which no file states.
GIVEN = {"n_inputs", "n_outputs", "every_step", "params", "optimizer", "network", "source"}
GIVEN |= {"config", "sizes", "overrides", "fitted", "base"}

#: Groups in which each key is a name, with a node.
NAMED = re.compile(r"^(callbacks|logger)\.\w+")


def schema(config_dir: str | None) -> Schema:
    """The schema of a whole config; under `definitions` that of each group's files, such as `model`
    and `optim.schedule`. It knows the classes that the config files name, yours in `config_dir`
    too, and allows others any arguments."""
    folders, _ = read(CONF, ["--config-dir", config_dir] if config_dir else [])
    sys.path += [os.getcwd(), str(CONF.parent)]  # where train.py finds classes of the user's
    choices: dict[str, list[str]] = {}
    # by the key where they stand, the classes, each with the comments of the file that names it
    targets: Targets = {"optim": {f"{Steps.__module__}.{Steps.__name__}": {}}}
    comments: Comments = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            group = file.parent.relative_to(folder).as_posix()
            if group.startswith("hydra"):
                continue
            choices.setdefault(group, []).append(file.stem)
            own = {NAMED.sub(r"\1.*", k): said for k, said in commented(file, group).items()}
            comments = own | comments
            package = re.search(r"^# @package (\S+)", file.read_text(), re.M)
            place = (package[1] if package else group).replace("/", ".").strip("._")
            content = OmegaConf.to_container(OmegaConf.load(file))
            find_targets(content, "" if place == "global" else place, own, targets)
    parts = {"defaults": {"type": "array", "items": defaults(choices)}}
    for place in sorted(targets, key=lambda place: -place.count(".")):  # what is inside first
        parts[place] = node(place, targets[place], parts, comments)
    optim = parts["optim"]["else"]["properties"]
    for key, said in comments.items():  # not all are of the steps
        if re.fullmatch(r"optim\.\w+", key):
            optim.setdefault(key.partition(".")[2], {"description": said})
    optim |= {key: refer(f"optim.{key}") for key in ("optimizer", "schedule")}
    optim["lr"] = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, *OPEN]} | optim["lr"]
    for name in ("callbacks", "logger"):
        parts[name] = mapping({"defaults": refer("defaults")}, refer(f"{name}.*"))
    known = Settings.model_json_schema()["properties"]
    keys = {key: {"anyOf": [known.get(key, {}), *OPEN]} for key in comments if "." not in key}
    keys = {key: described(one, comments[key]) for key, one in keys.items()}
    keys |= {name: refer(name) for name in parts if "." not in name} | {"hydra": {}}
    draft = "http://json-schema.org/draft-07/schema#"
    return {"$schema": draft, **mapping(keys), "definitions": parts}


def find_targets(value: Any, place: str, comments: Comments, targets: Targets) -> None:
    """Note each class that a config file names."""
    if isinstance(value, dict):
        if isinstance(value.get("_target_"), str):
            targets.setdefault(NAMED.sub(r"\1.*", place), {})[value["_target_"]] = comments
        for key, each in value.items():
            find_targets(each, f"{place}.{key}".strip("."), comments, targets)


def defaults(choices: dict[str, list[str]]) -> Schema:
    """What may stand in a `defaults` list: a file beside this one, or a group's choice."""
    groups: Schema = {}
    for group, names in choices.items():
        one = {"enum": [*(name for name in names if name[0] != "_"), None]}
        several = {"anyOf": [one, {"type": "array", "items": one}]}
        groups |= {group: several, f"override /{group}": several}
    beside = {"enum": sorted({name for names in choices.values() for name in names})}
    return {"anyOf": [beside, {"type": "string"}, {"type": "object", "properties": groups}]}


def node(place: str, targets: dict[str, Comments], parts: Schema, comments: Comments) -> Schema:
    """The schema of a node that names one of these classes, or leaves it to another file and has
    arguments of any of them."""
    classes = {"anyOf": [{"enum": [*targets]}, {"type": "string"}]}
    common, keys, cases = {"_target_": classes, "defaults": refer("defaults")}, {}, []
    for target, nearer in targets.items():
        with suppress(Exception):  # a package that is not installed
            own = arguments(target, place, parts, comments | nearer)
            for key, one in own.items():
                keys[key] = {"anyOf": [keys[key], one]} if key in keys else one
            which = {"properties": {"_target_": {"const": target}}}
            cases.append({"if": which, "then": mapping(common | own, others=not own)})
    # said although it is so: editors give a definition what it leaves out from the whole config
    found = {"type": ["object", "null"], "properties": common, "additionalProperties": True}
    found["if"] = OPEN[1]
    return found | {"then": {"allOf": cases}, "else": mapping(common | keys)}


def arguments(target: str, place: str, parts: Schema, comments: Comments) -> Schema:
    """The schemas of a constructor's arguments, with what is said of them: the comment of a config
    file's line, or the class's docstring."""
    found, types, texts = find_class(target, (object,), place, None), {}, {}
    for owner in found.__mro__[::-1]:
        with suppress(Exception):  # an annotation that names what cannot be imported here
            types |= get_type_hints(vars(owner)["__init__"])
        for names, text in ARGUMENT.findall(inspect.getdoc(owner) or ""):
            texts |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    made = {}
    given = () if place.startswith("data.") else GIVEN  # a task says its own sizes
    for name in (name for name in parameters(found) if name not in given):
        inside, one = f"{place}.{name}", {}
        if inside in parts:
            one = refer(inside)
        elif name in types:
            with suppress(PydanticUserError):  # a type that pydantic does not know
                # null is what the engine fills in
                null = [] if place.startswith(("data", "model", "loss")) else [{"type": "null"}]
                any_type = ConfigDict(arbitrary_types_allowed=True)
                own = TypeAdapter(types[name], config=any_type).json_schema()
                if "'anyOf': []" not in str(own):  # nor what is in it
                    one = {"anyOf": [own, *null, *OPEN]}
        made[name] = described(one, comments.get(inside) or texts.get(name))
    return made


#: An argument in a docstring: `name: text` or, as PyTorch has it, `name (type): text`.
ARGUMENT = re.compile(r"^ {4}(\w+(?:, \w+)*)(?: \([^\n]*\))?:\s+(.+(?:\n {8}.+)*)", re.M)


def described(one: Schema, said: str | None) -> Schema:
    return one | ({"description": said} if said else {})


def refer(part: str) -> Schema:
    return {"$ref": f"#/definitions/{part}"}


def mapping(keys: Schema, others: Schema | bool = False) -> Schema:
    """What has these keys and, if any, such others."""
    return {"properties": keys, "additionalProperties": others}
