import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from export.errors import ExportError  # noqa: E402
from export.lowering import selection  # noqa: E402

pytestmark = pytest.mark.workstation

SHAPE = (5, 6, 7)


class Fn(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *values):
        return self.function(*values)


CASES = {
    "slice": lambda x: x[:, 1:3],
    "slice_from_the_end": lambda x: x[..., -3:-1],
    "slice_beyond_the_end": lambda x: x[..., 2:100],
    "slice_all_but_the_last": lambda x: x[:, :, :-1],
    "slice_with_a_step": lambda x: x[..., 1::2],
    "slice_from_the_end_with_a_step": lambda x: x[..., -6:-1:2],
    "slice_with_a_step_beyond_the_end": lambda x: x[:, 0:50:3],
    "slice_of_both": lambda x: x[:, :, 1:5:2, 2:6],
    "differences": lambda x: (x[..., 1:] - x[..., :-1]).abs(),
    "select": lambda x: x[:, 2],
    "select_from_the_end": lambda x: x[..., -1],
    "select_twice": lambda x: x[:, 0, -2] * x[:, 1, 3],
    "split": lambda x: torch.cat(x.split([1, 3, 1], 1)[::-1], 1),
    "split_evenly": lambda x: torch.cat([part * i for i, part in enumerate(x.split(3, 2))], 2),
    "split_with_a_rest": lambda x: torch.cat([part * (i + 1) for i, part in enumerate(x.split(2, -1))], -1),
    "split_that_is_used_in_part": lambda x: x.split(2, -1)[1],
    "chunk": lambda x: x.chunk(2, 2)[0] * x.chunk(2, 2)[1],
    "slice_overwritten": lambda x: overwritten(x, slice(1, 3)),
    "first_overwritten": lambda x: overwritten(x, slice(0, 2)),
    "last_overwritten": lambda x: overwritten(x, slice(4, None)),
    "all_overwritten": lambda x: overwritten(x, slice(None)),
    "scatter_added": lambda x: x.scatter_add(1, (x[:, :2] > 0).long(), x[:, 2:4]),
    "looked_up_first": lambda x: (x * 2)[:, torch.tensor([4, 0, 2, 0])].detach() * x[:, :4],
    "looked_up_along_a_later_dimension": lambda x: x[:, torch.tensor([2, 0, 2])] * 3,
    "looked_up_by_a_matrix": lambda x: x[:, :, torch.tensor([[1, 0], [1, 5]])],
    "index_select": lambda x: x.index_select(2, torch.tensor([3, 3, 0])),
    "index_add": lambda x: (2 * x).index_add(1, torch.tensor([0, 2]), x[:, :2]),
    "taken_along": lambda x: torch.take_along_dim(x, (x > 0).long(), 1),
    "scatter_of_a_number": lambda x: x.scatter(1, (x[:, :2] > 0).long(), 0.5),
    "looked_up_by_two": lambda x: x[:, torch.tensor([0, 1, -1]), torch.tensor([2, 3, 1])],
    "looked_up_by_two_apart": lambda x: x[:, torch.tensor([0, 1, 4]), :, torch.tensor([2, 3, 1])].transpose(0, 1),
    "looked_up_by_a_row_and_a_column": lambda x: x[:, torch.tensor([[0], [3]]), torch.tensor([2, 3, 1])],
    "looked_up_for_each_sample": lambda x: x[torch.arange(x.shape[0]), 1] * x[torch.arange(x.shape[0]), :, 2, 3].sum(),
    "overwritten_by_two": lambda x: (
        x.permute(1, 2, 3, 0).index_put((torch.tensor([[0], [1]]), torch.tensor([1, 2])), x.mean()).permute(3, 0, 1, 2)
    ),
    "overwritten_along_one": lambda x: (
        x.transpose(0, 1).index_put((torch.tensor([3, 1]),), x[:, 0] * 2).transpose(0, 1)
    ),
    "added_by_two": lambda x: (
        x.permute(1, 2, 3, 0)
        .index_put((torch.tensor([0, 0, 0]), torch.tensor([1, 2, 1])), x[:, :3, 0].permute(1, 2, 0), accumulate=True)
        .permute(3, 0, 1, 2)
    ),
    "masked_in_place": lambda x: masked(x) + x,
    "copied": lambda x: (2 * x).index_copy(1, torch.tensor([4, 0]), x[:, :2]).index_fill(2, torch.tensor([1]), 0.5),
    "every_other_overwritten": lambda x: stepped(x) * 2,
    "diagonal": lambda x: x.diagonal(1, 2, 3) * 2,
    "diagonal_of_all_pairs": lambda x: (x.flatten(1) @ x.flatten(1).t()).diagonal().unsqueeze(1) * x.flatten(1),
    "diagonal_overwritten": lambda x: torch.diagonal_scatter(x, x[:, :, :5, 0], -1, 2, 3),
    "windows": lambda x: x.unfold(2, 3, 2) * 2,
    "windows_that_meet": lambda x: x.unfold(-1, 4, 1),
    "diagonal_changed_in_place": lambda x: changed(x, lambda y: y.diagonal(0, 2, 3)),
    "windows_changed_in_place": lambda x: changed(x, lambda y: y.unfold(2, 2, 2)),
    "split_unsafely": lambda x: x.unsafe_split(2, 1)[1] * x.unsafe_split_with_sizes([2, 3], 1)[0],
    "looked_up_unsafely": lambda x: torch.ops.aten._unsafe_index(x, [None, torch.tensor([1, 3])]),
    "overwritten_unsafely": lambda x: torch.ops.aten._unsafe_index_put(
        x.transpose(0, 1) * 1, [torch.tensor([1, 3])], x[:, :2].transpose(0, 1), True
    ).transpose(0, 1),
    "masked_scatter": lambda x: x.masked_scatter(x > 0, x * 3),
    "taken": lambda x: x * torch.arange(10.0).take(torch.tensor([[3, 1, 4, 1, 5, 9, 2]])),
    "put": lambda x: x * torch.zeros(6, 7).put(torch.tensor([3, 8, 3]), torch.ones(3), accumulate=True),
    "scatter_reduced": lambda x: (
        x.scatter_reduce(1, (x[:, :3] > 0).long(), x[:, 1:4] + 1, "sum")
        * x.scatter_reduce(1, (x[:, :3] > 0).long(), x[:, 1:4], "amax", include_self=False)
    ),
    "scatter_averaged": lambda x: (
        x.scatter_reduce(1, (x[:, :3] > 0).long(), x[:, 1:4], "mean")
        + x.scatter_reduce(1, (x[:, :3] > 0).long(), x[:, 1:4], "mean", include_self=False)
    ),
    "scatter_multiplied": lambda x: (
        x.scatter_reduce(1, (x[:, :3] > 0).long(), x[:, 1:4], "prod")
        * x.scatter_reduce(1, (x[:, :3] > 0).long(), x[:, 1:4], "sum", include_self=False)
    ),
    "index_reduced": lambda x: x.index_reduce(1, torch.tensor([0, 2, 0]), x[:, 1:4], "amin"),
    "extreme": lambda x: x.max(1)[0] + x.min(1)[0],
    "circular": lambda x: F.pad(x, (1, 2, 2, 0), mode="circular"),
}


def overwritten(x, where):
    y = x * 2
    y[:, where] = 3 * x[:, where]
    return y * x


def masked(x):
    y = x * 2
    y[x > 0.5] = 0.25
    return y * x


def changed(x, view):
    y = x * 2
    view(y).mul_(3)
    return y * x


class Table(nn.Module):
    """Rows of a table for each place, as the relative positions of window attention."""

    def __init__(self, pick):
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 3))
        self.pick = pick

    def forward(self, x):
        return x * self.pick(self.table)


TABLES = {
    "indexed": lambda t: t[torch.tensor([[0, 4, 1], [2, 2, 0]])].permute(2, 0, 1),
    "indexed_by_a_row": lambda t: t[torch.tensor([0, 3])].reshape(1, 6, 1)[:, :2],
    "embedded": lambda t: F.embedding(torch.tensor([[0, 4, 1], [2, 2, 0]]), t).permute(2, 0, 1),
}


@pytest.mark.parametrize("case", TABLES)
def test_looking_up_in_a_table_is_pytorchs(case, same_as_torch):
    shape = (2, 1) if case == "indexed_by_a_row" else (3, 2, 3)
    torch.manual_seed(1)
    found = same_as_torch(Table(TABLES[case]), shape)
    assert {"Gather", "ScatterND"} <= set(found.nodes)


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"padding_idx": -1}])
def test_embedding_is_pytorchs(options, same_as_torch):
    torch.manual_seed(1)
    same_as_torch(nn.Embedding(5, 3, **options), (4, 6), draw=lambda shape: torch.randint(0, 5, shape))


def stepped(x):
    y = x * 2
    y[:, ::2] = x[:, ::2]
    return y


REFUSED = {
    "mask": (lambda x: x[x > 0], "use torch.where"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_selection_that_cannot_be_translated_says_what_to_use(case, translate):
    function, text = REFUSED[case]
    with pytest.raises(ExportError, match=text):
        translate(Fn(function), torch.randn(2, *SHAPE))


def test_embedding_scaled_by_frequency_is_refused(translate):
    with pytest.raises(ExportError, match="scale_grad_by_freq=False"):
        translate(nn.Embedding(5, 3, scale_grad_by_freq=True), torch.zeros(2, 4, dtype=torch.int64))


def pixels(batch):
    return torch.randint(0, 5, (batch, 6, 7))


def rows(batch):
    return torch.randint(0, 5, (batch,))


CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0])
LOSSES = {
    "mean": F.cross_entropy,
    "sum": lambda x, t: F.cross_entropy(x, t, reduction="sum"),
    "each": lambda x, t: F.cross_entropy(x, t, reduction="none"),
    "ignored": lambda x, t: F.cross_entropy(x, t, ignore_index=0),
    "ignored_with_another_number": lambda x, t: F.cross_entropy(x, torch.where(t == 2, 255, t), ignore_index=255),
    "weighted": lambda x, t: F.cross_entropy(x, t, CLASS_WEIGHTS),
    "weighted_sum": lambda x, t: F.cross_entropy(x, t, CLASS_WEIGHTS, reduction="sum"),
    "weighted_and_ignored": lambda x, t: F.cross_entropy(x, t, CLASS_WEIGHTS, ignore_index=3),
    "smoothed": lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1),
    "nll": lambda x, t: F.nll_loss(F.log_softmax(x, 1), t, ignore_index=1),
}
LOOKED_UP = {
    "gather": lambda x, t: torch.where(t == 1, 2.0, 1.0) * x.detach().gather(1, t.unsqueeze(1)).squeeze(1) * x[:, 0],
}


@pytest.mark.parametrize("case", CASES)
def test_selection_is_pytorchs(case, same_as_torch):
    same_as_torch(Fn(CASES[case]), SHAPE)


@pytest.mark.parametrize("case", [*LOSSES, *LOOKED_UP])
def test_class_loss_of_pixels_is_pytorchs(case, same_as_torch):
    same_as_torch(Fn((LOSSES | LOOKED_UP)[case]), SHAPE, targets=pixels)


@pytest.mark.parametrize("case", LOSSES)
def test_class_loss_of_rows_is_pytorchs(case, same_as_torch):
    same_as_torch(Fn(LOSSES[case]), (5,), targets=rows)


def test_class_loss_where_all_is_ignored_is_not_a_number_in_both(same_as_torch):
    same_as_torch(Fn(LOSSES["ignored"]), SHAPE, targets=lambda batch: torch.zeros(batch, 6, 7, dtype=torch.int64))


def test_class_loss_of_one_sample_without_a_batch_is_pytorchs(same_as_torch):
    same_as_torch(Fn(lambda x: F.cross_entropy(x.mean(0), torch.tensor(2)) * x), (5,))


def test_contrastive_loss_over_all_pairs_of_a_batch_is_pytorchs(same_as_torch):
    def loss(x):
        z = F.normalize(x, dim=1)
        pairs = z @ z.roll(1, 1).t() / 0.1
        return F.cross_entropy(pairs, torch.arange(x.shape[0]), reduction="none").unsqueeze(1) * torch.ones_like(x)

    same_as_torch(Fn(loss), (6,))


@pytest.mark.parametrize("function", [lambda x: x[1:], lambda x: x[::2], lambda x: x.split(1, 0)[0]])
def test_selection_along_the_batch_is_refused(function, translate):
    with pytest.raises(ExportError):
        translate(Fn(function), torch.randn(2, *SHAPE))


@pytest.mark.slow
@pytest.mark.long
def test_every_rule_is_exercised(translate):
    found = set()
    for function in CASES.values():
        found |= translate(Fn(function), torch.randn(2, *SHAPE)).operators
    for function in (LOSSES | LOOKED_UP).values():
        found |= translate(Fn(function), torch.randn(2, *SHAPE), targets=pixels(2)).operators
        if function not in LOOKED_UP.values():
            found |= translate(Fn(function), torch.randn(2, 5), targets=rows(2)).operators
    for case, pick in TABLES.items():
        found |= translate(
            Table(pick), torch.randn((2, 2, 1) if case == "indexed_by_a_row" else (2, 3, 2, 3))
        ).operators
    assert set(selection.RULES) - found == set()
