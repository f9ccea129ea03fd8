"""Linear layers with weights laid out for oneDNN."""

import pytest
import torch
from torch import nn

from raysft.evaluation.prepacked import prepacked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_products_are_the_same(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 80), nn.Linear(80, 33, bias=False)).to(dtype)
    x = torch.randn(2, rows, 48).to(dtype)
    with torch.no_grad():
        expected = model(x)
        with prepacked(model, 64):
            can = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
            assert ("forward" in vars(model[0])) == can
            found = model(x)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 0.0}[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_afterwards_the_layers_are_their_own_again() -> None:
    """Also after an error; new weights count then."""
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(KeyError), prepacked(model, 1):
        raise KeyError
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(2.0)
        assert model(torch.randn(3, 4)).eq(2).all()


def test_layers_of_another_kind_stay_as_they_are() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    layer = Doubled(3, 3)
    x = torch.randn(2, 3)
    with torch.no_grad(), prepacked(layer, 1):
        torch.testing.assert_close(layer(x), 2 * nn.functional.linear(x, layer.weight, layer.bias))
