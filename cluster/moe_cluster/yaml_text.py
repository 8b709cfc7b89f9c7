"""Keeps YAML 1.1 from converting a plain value before the type of its key is known."""

import yaml

MERGE = "tag:yaml.org,2002:merge"
TAGS_KEPT = ("tag:yaml.org,2002:null", MERGE)
TEXT_RESOLVERS = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag in TAGS_KEPT]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
"""The implicit resolvers of a loader for which every plain value but null is text: 007 and `on` stay as written."""
