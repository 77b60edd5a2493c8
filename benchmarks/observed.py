"""OpenTelemetry as a site in production has it, but for an exporter that throws away what it gets."""

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

INTERVAL_MS = 1000
"""Between two collections of the metrics; sites have 15 to 60 seconds."""


class NoMetrics(MetricExporter):
    def export(self, metrics_data, timeout_millis=0, **kwargs):
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis=0):
        return True

    def shutdown(self, timeout_millis=0, **kwargs):
        pass


class NoSpans(SpanExporter):
    def export(self, spans):
        return SpanExportResult.SUCCESS


def providers(sampled: bool) -> dict[str, object]:
    """Return realtime's settings for a site that collects metrics, and traces every connection or none."""
    tracer_provider = TracerProvider(sampler=ALWAYS_ON if sampled else ALWAYS_OFF)
    tracer_provider.add_span_processor(BatchSpanProcessor(NoSpans()))
    reader = PeriodicExportingMetricReader(NoMetrics(), export_interval_millis=INTERVAL_MS)
    return {"TRACER_PROVIDER": tracer_provider, "METER_PROVIDER": MeterProvider([reader])}
