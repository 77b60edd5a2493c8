"""Which traces are kept, beyond what ``OTEL_TRACES_SAMPLER`` says."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes


class FollowLinks(Sampler):
    """
    Sample a root span that links to a sampled span of this process, and leave all else to ``sampler``.

    Whether a WebSocket is traced is decided once, when it is accepted. Each of its requests is a trace of its own that
    links to the accept span, and a sampler by ratio would throw the dice again for every one. A link that came from
    elsewhere decides nothing: a client could have itself traced at will.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        parent = get_current_span(parent_context).get_span_context()
        if not parent.is_valid and any(_decides(link.context) for link in links or ()):
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)
        return self._sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"FollowLinks{{{self._sampler.get_description()}}}"


def _decides(linked: SpanContext) -> bool:
    return linked.is_valid and not linked.is_remote and linked.trace_flags.sampled
