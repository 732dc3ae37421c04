import pickle
from pathlib import Path

import msgspec
import numpy as np
import samples

from broker_server.simulation.split_learning import as_sent
from broker_server.simulation.worker import DeviceTask, TaskRefused, perform
from edge_runtime.agent.work import DownloadedPlan
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.bundle_folder import read_folder
from edge_runtime.wire.messages import SplitLearning

FIXTURES = Path(__file__).parents[2] / "fixtures"
PLAN = samples.plan(3, tasks=("depth",), work="evaluate", data_split="val", split_learning=SplitLearning())


def test_what_came_to_another_process_leaves_out_its_defaults_again():
    came = pickle.loads(pickle.dumps(PLAN))
    assert b"fp32" in msgspec.json.encode(came)  # otherwise nobody needs as_sent any more
    assert msgspec.json.encode(as_sent(came)) == msgspec.json.encode(PLAN)
    assert as_sent(came) == PLAN


def test_a_plan_whose_round_was_over_before_its_device_began_is_refused(tmp_path):
    manifest = read_folder(FIXTURES / "bundle")
    order = DownloadedPlan(plan=PLAN, manifest=manifest, weights=np.zeros(1, np.float32), graphs=BlobStore(tmp_path))
    refused = perform(DeviceTask(data=FIXTURES / "data", state=tmp_path, memory_budget_bytes=1 << 40, downloaded=order))
    assert isinstance(refused, TaskRefused)
    assert refused.reason == "encoder_server"
