"""mesh.yaml: read, checked, frozen.

    load_config(path) · parse_config(text) · config_of(path, dict or MeshConfig)  →  MeshConfig, or ConfigError
    effective(config, service, route)                                             →  the policy in force, and who set it
    json_schema()                                                                 →  for editors and `meshlib schema`

reader (YAML 1.2, places) → schema (models) and references (the parts against each other), in one pass → load.
"""

from __future__ import annotations

from .effective import Effective, effective
from .load import config_of, json_schema, load_config, parse_config
from .model import MeshConfig

__all__ = ["Effective", "MeshConfig", "config_of", "effective", "json_schema", "load_config", "parse_config"]
