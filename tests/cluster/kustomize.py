"""What `kubectl apply -k` would apply, for machines without kubectl: as much of kustomize as cluster/kuberay uses.

Resources, components in their order, JSON patches, literals of a ConfigMap, replacements and a namespace. Where kubectl
is at hand a test compares the two.
"""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

CLUSTER_WIDE = ("Namespace",)


def documents(file: Path) -> list[Document]:
    """Return every document of a YAML file. What stands at an anchor and at its alias is not the same object."""
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [json.loads(json.dumps(document)) for document in yaml.load_all(file.read_text(), fast) if document]


def resolved(folder: Path, found: list[Document] | None = None) -> list[Document]:
    """Return the documents of a kustomization; a component's are those `found` so far, changed."""
    plan = documents(folder / "kustomization.yaml")[0]
    found = [] if found is None else found
    for name in plan.get("resources", ()):
        found += documents(folder / name) if (folder / name).is_file() else resolved(folder / name)
    for name in plan.get("components", ()):
        found = resolved(folder / name, found)
    for generator in plan.get("configMapGenerator", ()):
        data = dict(literal.split("=", 1) for literal in generator["literals"])
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data})
    for patch in plan.get("patches", ()):
        text = (folder / patch["path"]).read_text() if "path" in patch else patch["patch"]
        found = _patched(found, patch["target"], yaml.safe_load(text))
    if "namespace" in plan:
        _put_in(found, plan["namespace"])
    for replacement in plan.get("replacements", ()):
        _replace(found, replacement)
    return found


def _matches(document: Document, select: Document) -> bool:
    name = select.get("name", document["metadata"]["name"])
    return bool(document["kind"] == select["kind"] and document["metadata"]["name"] == name)


def _patched(found: list[Document], target: Document, patch: Any) -> list[Document]:
    chosen = [item for item in found if _matches(item, target)]
    assert chosen, target
    if isinstance(patch, dict):
        assert patch["$patch"] == "delete"
        return [item for item in found if item not in chosen]
    for item in chosen:
        for operation in patch:
            *way, last = [part.replace("~1", "/") for part in operation["path"].strip("/").split("/")]
            place: Any = item
            for part in way:
                place = place[int(part) if isinstance(place, list) else part]
            value = copy.deepcopy(operation["value"])
            if last == "-":
                place.append(value)
            elif isinstance(place, list):
                place[int(last)] = value
            else:
                assert operation["op"] == "add" or last in place, operation
                place[last] = value
    return found


def _put_in(found: list[Document], namespace: str) -> None:
    for item in found:
        if item["kind"] in CLUSTER_WIDE:
            item["metadata"]["name"] = namespace
            continue
        item["metadata"]["namespace"] = namespace
        for subject in item.get("subjects", ()):
            subject["namespace"] = namespace


def _replace(found: list[Document], replacement: Document) -> None:
    source = replacement["source"]
    (origin,) = [item for item in found if _matches(item, source)]
    value: Any = origin
    for part in _parts(source["fieldPath"]):
        value = value[part]
    for target in replacement["targets"]:
        options = target.get("options", {})
        for item in [item for item in found if _matches(item, target["select"])]:
            for path in target["fieldPaths"]:
                *way, last = _parts(path)
                places = list(_places(item, way))
                assert places, path
                for place in places:
                    if isinstance(place, list):
                        place[int(last)] = value
                        continue
                    assert last in place or options.get("create"), path
                    place[last] = _value(place.get(last), value, options)


def _parts(path: str) -> list[str]:
    return [bracket or plain for bracket, plain in re.findall(r"\[([^\]]+)\]|([^.\[\]]+)", path)]


def _places(place: Any, way: list[str]) -> Iterator[Any]:
    if not way:
        yield place
    elif way[0] == "*":
        for item in place:
            yield from _places(item, way[1:])
    elif isinstance(place, list):
        yield from _places(place[int(way[0])], way[1:])
    elif way[0] in place:
        yield from _places(place[way[0]], way[1:])


def _value(before: Any, value: Any, options: Document) -> Any:
    if "delimiter" not in options:
        return copy.deepcopy(value)
    pieces = before.split(options["delimiter"])
    pieces[options["index"]] = value
    return options["delimiter"].join(pieces)
