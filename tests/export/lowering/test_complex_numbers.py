import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export.lowering import complex_numbers  # noqa: E402

pytestmark = pytest.mark.workstation

SHAPE = (2, 12)


class Fn(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def spectrum(x, **options):
    return torch.stft(x, 8, 3, window=torch.hann_window(8), return_complex=True, **options)


CASES = {
    "magnitude": lambda x: torch.fft.rfft(x).abs(),
    "magnitude_of_nothing": lambda x: torch.fft.rfft(x * 0).abs() + torch.fft.rfft(x).abs(),
    "power": lambda x: torch.fft.rfft(x, norm="ortho").abs().pow(2),
    "parts": lambda x: torch.fft.rfft(x).real + 2 * torch.fft.rfft(x).imag,
    "pairs": lambda x: torch.view_as_real(torch.fft.fft(x, norm="forward")),
    "there_and_back": lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.arange(7), 12),
    "there_and_back_odd": lambda x: torch.fft.irfft(torch.fft.rfft(x[..., :11]), 11),
    "of_two_dimensions": lambda x: torch.fft.fft2(x).abs() + torch.fft.ifft2(torch.fft.rfft2(x)).real.sum(),
    "filtered": lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(x.roll(1, 2)).conj(), 12),
    "moved": lambda x: torch.fft.rfft(x).transpose(1, 2).unsqueeze(1)[:, 0, 1:, :].abs(),
    "squeezed": lambda x: torch.fft.rfft(x[:, :1]).squeeze().abs() + torch.fft.rfft(x[:, :1]).squeeze((1,)).real,
    "longer": lambda x: torch.fft.fft2(x, s=(3, 14)).abs(),
    "rolled": lambda x: torch.fft.rfft(x).roll(2, -1).conj_physical().mean(-1).imag,
    "picked": lambda x: torch.fft.rfft(x)[..., 2].abs() + torch.fft.rfft(x).flip(-1).sum(-1).abs(),
    "computed": lambda x: ((torch.fft.rfft(x) + 1) * (2 + 1j) - torch.fft.rfft(x) / 3).abs(),
    "made": lambda x: (torch.complex(x, 2 * x) * torch.polar(x.exp(), x)).abs(),
    "divided": lambda x: (torch.fft.rfft(x) / (torch.fft.rfft(x * x) + 9) + 1 / (torch.fft.rfft(x * x) + 9)).abs(),
    "joined": lambda x: torch.cat([torch.fft.rfft(x), 2 * -torch.fft.rfft(x)], 1).reshape(len(x), -1).mean(1).abs(),
    "spectrogram": lambda x: spectrum(x).abs().pow(2),
    "spectrogram_alone": lambda x: torch.view_as_real(spectrum(x, center=False, normalized=True)),
    "mel": lambda x: torch.log(torch.arange(15.0).reshape(3, 5) @ spectrum(x).abs() + 1e-3),
}


@pytest.mark.parametrize("case", CASES)
def test_complex_numbers_are_pytorchs(case, same_as_torch):
    shape = (12,) if case.startswith(("spectrogram", "mel")) else SHAPE
    same_as_torch(Fn(CASES[case]), shape)


@pytest.mark.long
def test_every_rule_is_exercised(translate):
    found = set()
    for case, function in CASES.items():
        shape = (12,) if case.startswith(("spectrogram", "mel")) else SHAPE
        found |= translate(Fn(function), torch.randn(2, *shape)).operators
    assert set(complex_numbers.RULES) - found == set()
