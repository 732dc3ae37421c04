"""Run graphs for another process, with a board's packages alone: requests on standard input, results on the output.

A message is a line of JSON, {"digest": SHA-256 of a graph, "files": [[name, bytes] …]}, and the files: of a request the
inputs as .npy and, the first time, the graph under no name; of an answer the outputs.
"""

import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np


def send(stream, digest, arrays, graph=b""):
    """Write a message."""
    files = {"": graph} if graph else {}
    for name, array in arrays.items():
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        files[name] = file.getvalue()
    sizes = [[name, len(data)] for name, data in files.items()]
    stream.write(json.dumps({"digest": digest, "files": sizes}).encode() + b"\n" + b"".join(files.values()))
    stream.flush()


def receive(stream):
    """Return a message's digest, arrays by name, and graph; None at the end of the stream."""
    if not (line := stream.readline()):
        return None
    head = json.loads(line)
    files = {name: stream.read(size) for name, size in head["files"]}
    graph = files.pop("", b"")
    return head["digest"], {name: np.load(io.BytesIO(data), allow_pickle=False) for name, data in files.items()}, graph


def main():
    from edge_runtime.training.engine import Engine

    engine, loaded = Engine(1), {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        while (message := receive(sys.stdin.buffer)) is not None:
            digest, inputs, graph = message
            if graph:
                assert hashlib.sha256(graph).hexdigest() == digest
                path.write_bytes(graph)
                loaded[digest] = engine.load(path)
            send(sys.stdout.buffer, digest, loaded[digest].call(inputs))


if __name__ == "__main__":
    main()
