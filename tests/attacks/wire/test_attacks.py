"""Hostile files, kept for ever: each is refused by its decoder with the one exception that callers handle."""

from pathlib import Path

import numpy as np
import pytest

from edge_runtime.wire import compression
from edge_runtime.wire.errors import BundleInvalid, MessageInvalid, TensorsInvalid
from edge_runtime.wire.manifest import decode
from edge_runtime.wire.messages import decode_device, decode_server, decode_status
from edge_runtime.wire.operators import ORT_TRAINING, PORTABLE, check_graph_file
from edge_runtime.wire.tensors import TensorTable, unpack

HERE = Path(__file__).parent
TABLE = TensorTable.of({"encoder.b": (), "encoder.w": (2, 3), "head.depth.w": (4,)})


def attacks(folder):
    paths = sorted((HERE / folder).iterdir())
    return pytest.mark.parametrize("path", paths, ids=[path.stem for path in paths])


@attacks("messages")
@pytest.mark.parametrize("decoder", [decode_device, decode_server, decode_status])
def test_hostile_message_is_refused(path, decoder):
    with pytest.raises(MessageInvalid) as caught:
        decoder(path.read_bytes())
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@attacks("manifests")
def test_hostile_manifest_is_refused(path):
    with pytest.raises(BundleInvalid) as caught:
        decode(path.read_bytes())
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@attacks("tensors")
def test_hostile_tensor_file_is_refused(path):
    with pytest.raises(TensorsInvalid) as caught:
        unpack(TABLE, path.read_bytes())
    assert len(str(caught.value)) < 600


@attacks("graphs")
@pytest.mark.parametrize("operators", [PORTABLE, ORT_TRAINING])
def test_hostile_graph_is_refused_before_an_engine_reads_it(path, operators):
    with pytest.raises(BundleInvalid) as caught:
        check_graph_file(path, "encoder.forward", operators)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@attacks("updates")
def test_hostile_update_is_refused(path):
    scheme = path.stem.partition("-")[0]
    with pytest.raises(TensorsInvalid) as caught:
        compression.decode(TABLE, path.read_bytes(), scheme, np.zeros(TABLE.size, np.float32))
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()
