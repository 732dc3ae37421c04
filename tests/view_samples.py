"""Samples of views, for tests of what is made of them."""

from broker_server.operator import messages as shown

OPEN = shown.RoundNow(
    number=3, phase="merge", work="train", group="a+b", index=2, rounds=4, members=14, results=1, quorum=7, refused=1,
    rejected=0, begun_at_s=1.0, age_s=12.0, deadline_in_s=3588.0, unanswered=12,
    waiting_for=(
        shown.Waiting(device="pi-07", doing="working", stage="train", done=3, total=10),
        shown.Waiting(device="pi-08", doing="offline"),
    ),
)  # fmt: skip
STATUS = shown.FederationView(
    at_s=0.0, federation="home", version="1", state="training", says="round 3 goes on", is_paused=False,
    tasks=("a", "b"), open=OPEN, phase_left_s=100.0, split=shown.SplitView(groups=(("a",), ("b",)), score=0.5),
    known=14, online=13, needed=2,
    phases=(
        shown.PhaseView(name="merge", work="train", groups=(("a", "b"),), start=None, done=3, rounds=4),
        shown.PhaseView(name="end", work="evaluate", groups=(("a",), ("b",)), start="merge", done=0, rounds=2),
    ),
    losses={"a": 1.0}, dropped={"result late": 2}, refused={"device that is revoked": 3},
)  # fmt: skip
DEVICE = shown.DeviceView(
    name="pi-07", doing="working", why="", stage="train", done=3, total=10, software="1.0", engine="e", platform="p",
    tasks=("a",), examples=3, memory_bytes=None, round=2, work_s=90.0, peak_bytes=150 << 20, budget_bytes=220 << 20,
    energy_j=12.0, is_estimated=True, temperature_c=61.2, throttled=("heat",),
)  # fmt: skip
BARE = shown.DeviceView(
    name="new-one", doing="new", why="start its agent", stage=None, done=None, total=None, software=None, engine=None,
    platform=None, tasks=(), examples=None, memory_bytes=None, round=None, work_s=None, peak_bytes=None,
    budget_bytes=None, energy_j=None, is_estimated=False, temperature_c=None, throttled=None,
)  # fmt: skip
ROUND = shown.RoundView(
    number=3, phase="merge", work="train", group="a+b", index=2, rounds=4, begun_at_s=0.0, wall_s=12.5, members=3,
    results=2, train_loss={"a": 1.0}, val_loss=None, test_loss=None, bytes_up=1, bytes_down=1, energy_j=12.0,
    is_estimated=False, is_partial=True,
)  # fmt: skip
