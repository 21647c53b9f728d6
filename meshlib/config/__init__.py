"""mesh.yaml: read, checked, frozen.

    load_config(path) · parse_config(text) · config_of(path, dict or MeshConfig)  →  MeshConfig, or ConfigError
    compose.compose(bootstrap, source, defaults, services)                        →  the same, of what came in parts
    effective(config, service, route)                                             →  the policy in force, and who set it
    load_bootstrap(path)                                                          →  the same without its policy
    json_schema()                                                                 →  for editors and `meshlib schema`

reader (YAML 1.2, places) → schema (models) and references (the parts against each other), in one pass: build. load has
the ways from files, text and dicts to it, compose the one from the config service, environment what wins over fields.
"""

from __future__ import annotations

from .effective import Effective, effective
from .load import config_of, followed_or_whole, json_schema, load_bootstrap, load_config, parse_config
from .model import MeshConfig

__all__ = [
    "Effective", "MeshConfig", "config_of", "effective", "followed_or_whole",
    "json_schema", "load_bootstrap", "load_config", "parse_config",
]  # fmt: skip
