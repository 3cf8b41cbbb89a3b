from intandem.recorder.binding import Arguments, bind_by_signature
from intandem.recorder.capture import capture
from intandem.recorder.graph import Attr, Call, CallKind, Graph, Guard, Ref, Site, Value

__all__ = [
    "Arguments",
    "Attr",
    "Call",
    "CallKind",
    "Graph",
    "Guard",
    "Ref",
    "Site",
    "Value",
    "bind_by_signature",
    "capture",
]
