"""The methods by name: where each is from, what it sends, what stays on a device, and a command that runs it.

`python -m broker_server methods` prints this table; the README's and the documents' are held to it by a test.
"""

# coverage: every branch

from collections.abc import Sequence

import msgspec

_UPDATE = "weights down, weights or their change up, each round"
_DATA = "data, optimizer state, what compression left out"
_HEADS = "all weights but the heads' down and up, each round"
_OWN = "weights down and up, each round"
_COLUMN = "a vector of its own down"
_DEMO = "python -m broker_server demo --strategy {0} --out runs/{0}"


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """One method: `name` is what settings and the README call it."""

    name: str
    paper: str
    sends: str
    """What crosses between a device and the server."""
    keeps: str
    """What never leaves a device."""
    example: str
    """A command that a new user can run, on data that it makes or that one before it imports."""


def _demo(name: str, paper: str, sends: str = _UPDATE, keeps: str = _DATA) -> Method:
    """Return a method that the demo shows: it makes the data and runs server and devices as processes."""
    return Method(name=name, paper=paper, sends=sends, keeps=keeps, example=_DEMO.format(name))


METHODS: tuple[Method, ...] = (
    _demo("mas", "Zhuang, Wen, Lyu, Zhang: MAS, ICCV 2023", f"{_UPDATE}; affinities while they are probed"),
    _demo("one_by_one", "a model for each task (baseline)"),
    _demo("all_in_one", "McMahan et al.: FedAvg, AISTATS 2017, over all tasks in one model"),
    Method(
        name="fixed",
        paper="groups that were known before",
        sends=_UPDATE,
        keeps=_DATA,
        example=_DEMO.format("fixed") + " --fixed-groups 'depth,normals;segmentation,edge_texture,keypoints'",
    ),
    _demo("tag", "Fifty et al.: TAG, NeurIPS 2021", f"{_UPDATE}; affinities in every round"),
    _demo("hoa", "Standley et al.: Which Tasks Should Be Learned Together, ICML 2020", f"{_UPDATE}; losses of pairs"),
    _demo("tree", "groups halved where a round of the halves gains more for its joules", f"{_UPDATE}; affinities"),
    _demo("exhaustive", "every group of tasks, chosen by validation loss (a yardstick for comparisons)"),
    Method(
        name="fedbone",
        paper="Chen et al.: FedBone, JCST 39(5), 2024",
        sends="embeddings up and representations down, and their gradients the other way; stem and heads each round",
        keeps="images, labels; the stem too with local_stems",
        example="make compare-fedbone",
    ),
    _demo(
        "successive", "Hashimoto et al.: Joint Many-Task Model, EMNLP 2017", f"{_UPDATE}; where the encoder was, down"
    ),
    _demo("fedper", "Arivazhagan et al.: Personalization Layers, 2019", _HEADS, f"the heads; {_DATA}"),
    _demo("fedrep", "Collins et al.: FedRep, ICML 2021", _HEADS, f"the heads; {_DATA}"),
    _demo("ditto", "Li et al.: Ditto, ICML 2021", _OWN, f"a model of its own; {_DATA}"),
    _demo("pfedme", "Dinh, Tran, Nguyen: Moreau envelopes, NeurIPS 2020", _OWN, f"a model of its own; {_DATA}"),
    _demo("fedu", "Dinh et al.: FedU, IEEE TNNLS 2022", "weights of its own down, and up, each round"),
    _demo(
        "mat_fl",
        "Cai et al.: Many-Task Federated Learning, CVPRW 2023",
        "weights of its own down, and up, but the heads', each round",
        f"the heads; {_DATA}",
    ),
    _demo(
        "mocha",
        "Smith, Chiang, Sanjabi, Talwalkar: Federated Multi-Task Learning, NIPS 2017",
        f"{_COLUMN}; the sum of its dual variables up, each round",
        "data, dual variables",
    ),
    _demo(
        "dmtrl",
        "Liu, Pan, Ho: Distributed Multi-Task Relationship Learning, KDD 2017",
        f"{_COLUMN}; the sum of its dual variables up, each round",
        "data, dual variables",
    ),
    _demo(
        "proximal_mtl",
        "Baytas, Yan, Jain, Zhou: Asynchronous Multi-Task Learning, ICDM 2016 (its synchronous form)",
        f"{_COLUMN}; its gradient up, each round",
        "data",
    ),
    _demo(
        "amtl",
        "Baytas, Yan, Jain, Zhou: Asynchronous Multi-Task Learning, ICDM 2016",
        f"{_COLUMN}; where a step leads up, each device at its own pace",
        "data",
    ),
    _demo(
        "online_primal_dual",
        "after Yang, Li: online primal-dual multi-task learning, AAAI 2020 (a reconstruction)",
        f"{_COLUMN}; the subgradient of its newest samples up, each round",
        "data",
    ),
    _demo(
        "mixed_effect",
        "Dinuzzo, Pillonetto, De Nicolao: client-server multi-task learning, IEEE TNN 2011",
        "statistics of second order up and the shared vector down, once",
        "data, the private part of its model",
    ),
    _demo(
        "fedhca2",
        "Lu et al.: FedHCA², CVPR 2024",
        "weights of its own down, and up, each round",
        f"its tasks may be others than other devices'; {_DATA}",
    ),
    _demo(
        "deep_mocha",
        "Smith et al.: MOCHA, NIPS 2017; Liu et al.: DMTRL, KDD 2017; their penalty on heads of networks",
        "weights of its own and a centre for its heads down, weights up, each round",
    ),
    _demo(
        "multilinear",
        "Long et al.: Multilinear Relationship Networks, NIPS 2017",
        "weights of its own and a centre for its heads down, weights up, each round",
    ),
)


def shown(methods: Sequence[Method]) -> str:
    """Return the methods for people: a paragraph for each."""
    rows = ("paper", "sends", "keeps", "example")
    return "\n\n".join(
        "\n".join([each.name, *(f"  {row + ':':9}{getattr(each, row)}" for row in rows)]) for each in methods
    )
