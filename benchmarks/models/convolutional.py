"""Convolutional networks written against plain torch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


def conv(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    act: Activation | None = nn.ReLU,
) -> nn.Sequential:
    padding = dilation * (kernel - 1) // 2
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class Basic(nn.Module):
    """ResNet's block of two convolutions (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.downsample = None if same else conv(inputs, outputs, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        result: Tensor = self.relu(out)
        return result


def resnet18(width: int = 64) -> tuple[nn.Sequential, int]:
    """(He et al., CVPR 2016); and how many channels come out."""
    stages: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = width
    for i in range(4):
        outputs = width * 2**i
        stages += [Basic(inputs, outputs, 1 if i == 0 else 2), Basic(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*stages), inputs


class SqueezeExcitation(nn.Module):
    """Channels scaled by a function of their means (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, hidden: int, gate: Activation) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.gate(self.fc2(F.relu(self.fc1(self.pool(x)))))
        return x * scale


class Inverted(nn.Module):
    """The inverted residual of MobileNetV2 and V3 and of EfficientNet: `hidden` channels, a gate of `squeezed` ones."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        hidden: int,
        *,
        kernel: int = 3,
        act: Activation = nn.ReLU6,
        squeezed: int = 0,
        gate: Activation = nn.Sigmoid,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [] if hidden == inputs else [conv(inputs, hidden, 1, act=act)]
        layers.append(conv(hidden, hidden, kernel, stride, groups=hidden, act=act))
        if squeezed:
            layers.append(SqueezeExcitation(hidden, squeezed, gate))
        self.layers = nn.Sequential(*layers, conv(hidden, outputs, 1, act=None))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def mobilenet_v2(width: float = 1.0, last: int = 1280) -> tuple[nn.Sequential, int]:
    """(Sandler et al., CVPR 2018): expansion, channels, repeats and stride of each stage; `last` channels come out."""
    inputs = int(32 * width)
    layers: list[nn.Module] = [conv(3, inputs, stride=2, act=nn.ReLU6)]
    plan = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, channels, repeats, stride in plan:
        outputs = int(channels * width)
        for i in range(repeats):
            layers.append(Inverted(inputs, outputs, stride if i == 0 else 1, inputs * expand))
            inputs = outputs
    return nn.Sequential(*layers, conv(inputs, last, 1, act=nn.ReLU6)), last


def mobilenet_v3_small(width: float = 1.0) -> tuple[nn.Sequential, int]:
    """(Howard et al., ICCV 2019, table 2): kernel, hidden and outgoing channels, squeeze, activation and stride."""
    inputs = int(16 * width)
    layers: list[nn.Module] = [conv(3, inputs, stride=2, act=nn.Hardswish)]
    plan: tuple[tuple[int, int, int, bool, Activation, int], ...] = (
        (3, 16, 16, True, nn.ReLU, 2),
        (3, 72, 24, False, nn.ReLU, 2),
        (3, 88, 24, False, nn.ReLU, 1),
        (5, 96, 40, True, nn.Hardswish, 2),
        (5, 240, 40, True, nn.Hardswish, 1),
        (5, 240, 40, True, nn.Hardswish, 1),
        (5, 120, 48, True, nn.Hardswish, 1),
        (5, 144, 48, True, nn.Hardswish, 1),
        (5, 288, 96, True, nn.Hardswish, 2),
        (5, 576, 96, True, nn.Hardswish, 1),
        (5, 576, 96, True, nn.Hardswish, 1),
    )
    for kernel, expanded, channels, squeeze, act, stride in plan:
        hidden, outputs = int(expanded * width), int(channels * width)
        squeezed = max(hidden // 4, 2) if squeeze else 0
        layers.append(
            Inverted(inputs, outputs, stride, hidden, kernel=kernel, act=act, squeezed=squeezed, gate=nn.Hardsigmoid)
        )
        inputs = outputs
    last = int(576 * width)
    return nn.Sequential(*layers, conv(inputs, last, 1, act=nn.Hardswish)), last


def efficientnet_b0(width: float = 1.0) -> tuple[nn.Sequential, int]:
    """(Tan and Le, ICML 2019, table 1): kernel, expansion, channels, repeats and stride of each stage."""
    inputs = int(32 * width)
    layers: list[nn.Module] = [conv(3, inputs, stride=2, act=nn.SiLU)]
    plan = (
        (3, 1, 16, 1, 1),
        (3, 6, 24, 2, 2),
        (5, 6, 40, 2, 2),
        (3, 6, 80, 3, 2),
        (5, 6, 112, 3, 1),
        (5, 6, 192, 4, 2),
        (3, 6, 320, 1, 1),
    )
    for kernel, expand, channels, repeats, stride in plan:
        outputs = int(channels * width)
        for i in range(repeats):
            layers.append(
                Inverted(
                    inputs,
                    outputs,
                    stride if i == 0 else 1,
                    inputs * expand,
                    kernel=kernel,
                    act=nn.SiLU,
                    squeezed=max(inputs // 4, 2),
                )
            )
            inputs = outputs
    last = int(1280 * width)
    return nn.Sequential(*layers, conv(inputs, last, 1, act=nn.SiLU)), last


def twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs), conv(outputs, outputs))


class UNetEncoder(nn.Module):
    """Hands every stage on (Ronneberger et al., MICCAI 2015)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stages = nn.ModuleList([twice(3, width), twice(width, 2 * width), twice(2 * width, 4 * width)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = []
        for i, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if i else x)
            found.append(x)
        return tuple(found)


class UNetHead(nn.Module):
    def __init__(self, outputs: int, width: int = 6) -> None:
        super().__init__()
        self.merge = nn.ModuleList([twice(6 * width, 2 * width), twice(3 * width, width)])
        self.out = nn.Conv2d(width, outputs, 1)

    def forward(self, z: tuple[Tensor, ...]) -> Tensor:
        x = z[-1]
        for stage, skip in zip(self.merge, z[-2::-1], strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = stage(torch.cat([skip, x], 1))
        result: Tensor = self.out(x)
        return result


class Aspp(nn.Module):
    """Dilated convolutions side by side and the image's mean (Chen et al., DeepLabv3, 2017)."""

    def __init__(self, inputs: int, outputs: int, width: int = 12) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [conv(inputs, width, 1), *(conv(inputs, width, 3, dilation=rate) for rate in (2, 4, 6))]
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, width, 1), nn.ReLU())
        self.project = nn.Sequential(conv(5 * width, width, 1), nn.Conv2d(width, outputs, 1))

    def forward(self, z: Tensor) -> Tensor:
        mean = F.interpolate(self.pool(z), size=z.shape[-2:], mode="bilinear", align_corners=False)
        found = self.project(torch.cat([*(branch(z) for branch in self.branches), mean], 1))
        return F.interpolate(found, scale_factor=4, mode="bilinear", align_corners=False)


class Classifier(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, outputs)

    def forward(self, z: Tensor) -> Tensor:
        result: Tensor = self.fc(F.adaptive_avg_pool2d(z, 1).flatten(1))
        return result
