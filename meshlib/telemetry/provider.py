"""The OpenTelemetry SDK, where the application installed it, asked for an exporter, and set no provider of its own.

Rules (OpenTelemetry specification, "Environment Variable Specification"):
  * `OTEL_SDK_DISABLED=true`, a provider that is already set, or no exporter asked for: nothing is touched, and nothing
    is recorded. A sampled span without an exporter would be cost for nobody.
  * An exporter is asked for by `OTEL_TRACES_EXPORTER` (a list; `none`), or by an OTLP endpoint, which means `otlp`.
  * An exporter that is unknown, not installed or broken is a warning, never a failed start.
  * Sampler, limits, endpoint, headers and batching are the SDK's own reading of `OTEL_*`.
"""

from __future__ import annotations

import logging
import os
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from opentelemetry import trace as otel

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_LOG = logging.getLogger("meshlib.telemetry")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def setup_provider(service: str, instance: str) -> TracerProvider | None:
    """Set up the process's tracer provider from `OTEL_*`; None: there is nothing to set up.

    `service` and `instance` are `service.name` and `service.instance.id`, unless `OTEL_SERVICE_NAME` or
    `OTEL_RESOURCE_ATTRIBUTES` say otherwise. The caller shuts the provider down: `shutdown()` sends what is queued.
    """
    names = _exporter_names()
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or not names or not isinstance(otel.get_tracer_provider(), otel.ProxyTracerProvider):
        return None
    try:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        _LOG.warning("OTEL_* asks for spans to be exported, and no SDK is installed: install service-meshlib[otel]")
        return None
    exporters = [made for name in names if (made := _exporter(name)) is not None]
    if not exporters:
        return None
    said = OTELResourceDetector().detect().attributes
    ours = {"service.name": service, "service.instance.id": instance}
    provider = TracerProvider(resource=Resource.create({k: v for k, v in ours.items() if k not in said}))
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    otel.set_tracer_provider(provider)
    return provider


def _exporter_names() -> list[str]:
    """Names of the entry point group `opentelemetry_traces_exporter`, each once."""
    asked = os.environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if not asked and _first(_ENDPOINTS):
        asked = "otlp"
    names = dict.fromkeys(part for name in asked.split(",") if (part := name.strip()) and part != "none")
    otlp = "otlp_proto_grpc" if _first(_PROTOCOLS) == "grpc" else "otlp_proto_http"
    return [otlp if name == "otlp" else name for name in names]


def _exporter(name: str) -> Any:
    for entry in entry_points(group="opentelemetry_traces_exporter", name=name):
        try:
            return entry.load()()
        except Exception as error:
            _LOG.warning("the span exporter %r could not be made from OTEL_*, so it is left out: %r", name, error)
            return None
    _LOG.warning("the span exporter %r that OTEL_TRACES_EXPORTER asks for is not installed; it is left out", name)
    return None


def _first(variables: tuple[str, ...]) -> str:
    return next((value for name in variables if (value := os.environ.get(name, ""))), "")
