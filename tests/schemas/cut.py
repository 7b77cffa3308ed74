"""Make ``kubernetes.json`` of the schemas that ``kubernetes-validate`` carries: the kinds that are deployed, without descriptions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KINDS = {
    "apps/v1 Deployment": "io.k8s.api.apps.v1.Deployment",
    "policy/v1 PodDisruptionBudget": "io.k8s.api.policy.v1.PodDisruptionBudget",
    "v1 Namespace": "io.k8s.api.core.v1.Namespace",
    "v1 Service": "io.k8s.api.core.v1.Service",
}


def plain(schema: Any) -> Any:
    """The same without what is only for people, and with references into one file."""
    if isinstance(schema, dict):
        # a property may be called "description"
        kept = {
            k: v
            for k, v in schema.items()
            if not (k == "description" and isinstance(v, str)) and not k.startswith("x-")
        }
        return {
            k: f"#/definitions/{v.rpartition('/')[2]}" if k == "$ref" and isinstance(v, str) else plain(v)
            for k, v in kept.items()
        }
    return [plain(each) for each in schema] if isinstance(schema, list) else schema


def names_in(schema: Any) -> set[str]:
    if isinstance(schema, dict):
        own = {schema["$ref"].rpartition("/")[2]} if isinstance(schema.get("$ref"), str) else set()
        return own.union(*map(names_in, schema.values()))
    return set().union(*map(names_in, schema)) if isinstance(schema, list) else set()


def cut(definitions: dict[str, Any]) -> dict[str, Any]:
    known = {name: plain(schema) for name, schema in definitions.items()}
    reached, to_read = set(KINDS.values()), list(KINDS.values())
    while to_read:
        new = names_in(known[to_read.pop()]) - reached
        reached |= new
        to_read += new
    return {"kinds": KINDS, "definitions": {name: known[name] for name in sorted(reached)}}


if __name__ == "__main__":
    import kubernetes_validate

    # they refuse what they do not know
    newest = max(Path(kubernetes_validate.__file__).parent.rglob("v*-local-strict/_definitions.json"))
    print(newest.parent.name, file=sys.stderr)
    made = cut(json.loads(newest.read_text())["$defs"])
    Path(__file__).with_name("kubernetes.json").write_text(
        json.dumps(made, separators=(",", ":"), sort_keys=True) + "\n"
    )
