"""The documents that several tests share."""

from __future__ import annotations

FULL = """\
version: 1
mesh: shop
trust_domain: shop.dev
control: {urls: ["https://127.0.0.1:7443", "https://[::1]:7443"], fallback: snapshot, start_timeout: 60s}
identity: {source: control}
policy_source: file
ca: {leaf_ttl: 24h, root_ttl: 8760h}
state_dir: .meshlib
admin: {listen: "127.0.0.1:0"}
instance: {zone: eu-1a, weight: 2, labels: {version: "2"}}
telemetry: {tracing: {sample: 1%}}
defaults:
  timeout: 2s
  retries:
    max_retries: 1
    retry_on: [connect_failure, reset, gateway_error, 5xx, 503]
    per_try_timeout: 500ms
    back_off: {base_interval: 25ms, max_interval: 250ms, multiplier: 2}
    budget: {percent: 20%, min_per_second: 10}
  load_balancer: {policy: peak_ewma}
  mtls: strict
  limits: {max_timeout: 30s, max_retries: 3, max_request_body: 1MiB, max_response_body: 10MB, max_decoded_body: 4096}
services:
  inventory:
    owner: stock-team
    protocol: http
    endpoints:
      - static: ["127.0.0.1:8081", {address: "127.0.0.1:8082", zone: a, weight: 3, labels: {version: "2"}}]
      - registry: {}
      - static: ["[::1]:8083"]
    subsets: {v1: {version: "1"}, v2: {version: "2"}}
    allow_routes_from: [orders]
    load_balancer: {policy: least_request}
    connection_pool: {max_connections: 32, idle_timeout: 60s, max_age: 30m, connect_timeout: 1s}
    outlier_detection: {consecutive_errors: 5, base_ejection_time: 30s, max_ejection_percent: 50%}
    circuit_breaker: {max_requests: 1024, max_pending: 128}
    stream_idle_timeout: 1m
    routes:
      - name: beta
        matches:
          - {path: {prefix: /items}, method: GET, headers: {X-Beta: "1", x-old: {present: false}}}
          - {path: {exact: /all}, method: [GET, HEAD], headers: {x-a: {prefix: p}, x-b: {suffix: s}, x-c: {contains: c}}}
        backends: [{subset: v2}]
      - name: main
        backends: [{subset: v1, weight: 90}, {subset: v2, weight: 10}]
        timeout: 400ms
        stream_idle_timeout: 30s
        idempotent: true
        retries: {max_retries: 2}
  orders.stock: {}
  orders:
    routes: [{name: there, backends: [{service: inventory, subset: v1}]}]
"""
"""Every field of this release, each at a value that is allowed."""

FIVE_MISTAKES = """\
version: 1
mesh: shop
defaults:
  timeout: 2 seconds
services:
  inventory:
    endpoints: [{static: ["127.0.0.1:80800"]}]
    load_balancer: {policy: round_robbin}
    retrys: {max_retries: 1}
    subsets: {v1: {version: "1"}}
    routes:
      - name: main
        backends: [{subset: v1}, {subset: v2}]
"""

BROKEN = {
    "mesh.yaml:4:12": "defaults.timeout: '2 seconds' is not a duration: write up to four whole numbers, "
    "each with h, m, s or ms, such as 250ms",
    "mesh.yaml:7:27": "services.inventory.endpoints[0].static[0]: '127.0.0.1:80800' has no valid port: "
    "a port is a number from 1 to 65535",
    "mesh.yaml:8:29": "services.inventory.load_balancer.policy: 'round_robbin' is not one of peak_ewma, least_request, "
    "round_robin, random (did you mean 'round_robin'?)",
    "mesh.yaml:9:5": "services.inventory.retrys: unknown field (did you mean 'retries'?)",
    "mesh.yaml:13:43": "services.inventory.routes[0].backends[1].subset: service 'inventory' has no subset 'v2'; "
    "it has 'v1'",
}
"""The problems of FIVE_MISTAKES: place → path and sentence."""
