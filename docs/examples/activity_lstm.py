"""Activity recognition: what someone does, and who it is, from two seconds of an inertial sensor, by an LSTM.

    python -m export compile docs/examples/activity_lstm.py:build --out bundle

A sample is motion.npy (N, 9, 64): body acceleration, angular velocity and total acceleration in three directions at
32 Hz, as in the smartphone data of Anguita et al. (ESANN 2013). A convolution with a stride shortens the window before
the LSTM to 32 steps.
"""

import torch
from torch import nn

from export.losses import cross_entropy
from export.model import MultiTaskModel

CHANNELS, STEPS, WIDTH, ACTIVITIES, PEOPLE = 9, 64, 32, 6, 30


class Recurrent(nn.Module):
    """Windows (B, 9, 64) to the LSTM's last state (B, 32)."""

    def __init__(self):
        super().__init__()
        self.shorten = nn.Conv1d(CHANNELS, WIDTH, 5, stride=2, padding=2)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, motion):
        states, _ = self.lstm(torch.relu(self.shorten(motion)).transpose(1, 2))
        return states[:, -1]


def build():
    """Two classifications."""
    return MultiTaskModel(
        encoder=Recurrent(),
        heads={"activity": nn.Linear(WIDTH, ACTIVITIES), "person": nn.Linear(WIDTH, PEOPLE)},
        losses={"activity": cross_entropy(), "person": cross_entropy()},
        example_input={"motion": torch.rand(4, CHANNELS, STEPS)},
        example_targets={
            "activity": torch.randint(0, ACTIVITIES, (4,)),
            "person": torch.randint(0, PEOPLE, (4,)),
        },
    )
