"""Plans in which a prior holds each device's heads, given those of all others (aggregation/priors.py)."""

from collections.abc import Mapping

import msgspec
import numpy as np

from broker_server.aggregation.fedavg import HEAD
from broker_server.aggregation.priors import Prior
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.messages import Plan
from edge_runtime.wire.personal import Held
from edge_runtime.wire.tensors import TensorTable, pack, transfer, unpack


def held_plans(plans: Mapping[str, Plan], table: TensorTable, prior: Prior, blobs: BlobStore) -> dict[str, Plan]:
    """Return devices' plans with the centre and the strength that their heads are held to.

    Each names weights laid out by `table`, which are here; one device alone is held by nobody. The same plans give the
    same centres.
    """
    if len(plans) < 2:
        return dict(plans)
    parts = tuple(part for part in table.parts if part.startswith(HEAD))
    heads = table.select(parts)
    rows = [transfer(table, unpack(table, blobs.read(plan.weights.digest)), heads) for plan in plans.values()]
    centres, strengths = prior.pulls(np.array(rows, np.float64), heads)
    made: dict[str, Plan] = {}
    for (device, plan), centre, strength in zip(plans.items(), centres, strengths, strict=True):
        file = blobs.add(pack(heads, centre.astype(np.float32)))
        made[device] = msgspec.structs.replace(plan, held=Held(parts=parts, centre=file, strength=float(strength)))
    return made
