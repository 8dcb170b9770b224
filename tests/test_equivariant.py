"""Layers of equivariant networks against those of e3nn, in double precision."""

import pytest
import torch

from helpers.potentials.mace import contained

with contained():
    import mace.modules  # noqa: F401  (its import of e3nn is the first)
    from e3nn import o3

from helpers.potentials.equivariant import Convolution, ElementLinear, even

FEATURES, HARMONICS = o3.Irreps("8x0e+4x1o+2x2e"), o3.Irreps.spherical_harmonics(3)


@pytest.fixture(autouse=True)
def double():
    """The package makes its constants in the default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def product(mode: str = "uvu", weights: bool = True) -> o3.TensorProduct:
    """A tensor product with one output for each path up to l = 2, in the order of the outputs."""
    found = []
    for i, (mul, one) in enumerate(FEATURES):
        for j, (_, other) in enumerate(HARMONICS):
            found += [(mul, ir, i, j) for ir in one * other if ir.l <= 2]
    order = sorted(range(len(found)), key=lambda k: found[k][1])
    paths = [(found[k][2], found[k][3], place, mode, weights) for place, k in enumerate(order)]
    outputs = o3.Irreps([(found[k][0], found[k][1]) for k in order])
    return o3.TensorProduct(FEATURES, HARMONICS, outputs, paths, shared_weights=False, internal_weights=False)


@pytest.fixture(params=["every atom with three edges", "one to four edges, one atom with none"])
def batch(request):
    """Five atoms and their edges: features, harmonics, weights, edge_index."""
    torch.manual_seed(1)
    counts = torch.tensor([3] * 5 if request.param.startswith("every") else [4, 1, 0, 3, 2])
    receiver = torch.arange(5).repeat_interleave(counts)
    sender = torch.randint(5, (len(receiver),))
    x = torch.randn(5, FEATURES.dim)
    harmonics = o3.spherical_harmonics(HARMONICS, torch.randn(len(receiver), 3), normalize=True)
    return x, harmonics, torch.randn(len(receiver), product().weight_numel), torch.stack([sender, receiver])


def test_sums_are_those_of_the_messages(batch):
    x, harmonics, weights, (sender, receiver) = batch
    inputs = [part.clone().requires_grad_(True) for part in (x, harmonics, weights)]
    layer = product()
    messages = layer(inputs[0][sender], *inputs[1:])
    expected = messages.new_zeros(len(x), messages.shape[1]).index_add(0, receiver, messages)
    found = Convolution.like(layer).to(torch.float64)(*inputs, torch.stack([sender, receiver]))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    # The derivatives, and theirs, for a loss on forces is differentiated twice.
    firsts = [torch.autograd.grad(out.square().sum(), inputs, create_graph=True) for out in (found, expected)]
    seconds = [torch.autograd.grad(sum(part.square().sum() for part in first), inputs) for first in firsts]
    for one, other in (*zip(*firsts, strict=True), *zip(*seconds, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_edges_in_rows_of_one_length():
    rows = even(torch.tensor([0, 0, 2, 2, 2, 3]), 4)
    assert rows.tolist() == [[0, 1, 6], [6, 6, 6], [2, 3, 4], [5, 6, 6]]


def test_other_products_are_refused():
    with pytest.raises(ValueError, match="no product of features with harmonics"):
        Convolution.like(product(weights=False))
    with pytest.raises(ValueError, match="no product of features with harmonics"):
        Convolution.like(o3.FullyConnectedTensorProduct("4x0e", "2x0e", "4x0e"))
    with pytest.raises(ValueError, match="no linear layer"):
        ElementLinear(o3.FullyConnectedTensorProduct("4x0e", "2x1o", "4x1o"))


def test_a_matrix_for_each_element():
    torch.manual_seed(2)
    layer = o3.FullyConnectedTensorProduct(FEATURES, "7x0e", "6x0e+4x1o+3x0e")
    elements = torch.eye(7)[torch.tensor([6, 0, 0, 3, 6])]
    x = torch.randn(5, FEATURES.dim, requires_grad=True)
    found, expected = ElementLinear(layer)(x, elements), layer(x, elements)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(out.square().sum(), (x, layer.weight)) for out in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    # The weights belong to the package's layer alone.
    assert not list(ElementLinear(layer).parameters())
