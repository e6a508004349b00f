"""Small models in the styles in which people write them; the fixture `style` goes through them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InOrder(nn.Sequential):
    """Layers in an nn.Sequential: three runs, one with pool before ReLU, and one conv that no pool follows."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 8, 3, bias=False), nn.ReLU()),
            *(nn.Conv2d(8, 16, 3, padding="same", padding_mode="circular"), nn.MaxPool2d(3, 2, 1), nn.ReLU()),
            *(nn.Dropout(0.5), nn.Flatten(), nn.Linear(256, 5)),
        )


class Modules(nn.Module):
    """Layers called one by one in forward, one ReLU and one pool for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.relu, self.pool, self.drop = nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.5)
        self.fc = nn.Linear(72, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.relu(self.pool(self.conv2(x)))
        return self.fc(self.drop(torch.flatten(x, 1)))


class Functions(nn.Module):
    """ReLU and pool as functions, in every spelling."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))])
        self.p = 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.convs[0](x)), 2)
        x = F.max_pool2d(torch.relu(self.convs[1](x)), kernel_size=3, stride=1, padding=1)
        x = torch.max_pool2d(self.convs[2](x).relu(), 2, ceil_mode=True)
        x = F.relu(F.max_pool2d(self.convs[3](x), (2, 1)), inplace=True)
        x = F.max_pool2d(self.convs[4](x).relu_(), 2, 1)
        return F.dropout(x, self.p, self.training).mean((2, 3))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Blocks(nn.Module):
    """Conv and pool on two sides of a module's border, with norms; in a Sequential and in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Block(3, 8), nn.MaxPool2d(2), Block(8, 8))
        self.pool = nn.MaxPool2d(2, stride=1)
        self.body = nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)), nn.ReLU())
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = F.max_pool2d(self.body(x), 2)
        return self.fc(x.mean((2, 3)))


class Skip(nn.Module):
    """Only the second of two convs is free of other readers; the first one's ReLU feeds a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.conv1(x))
        b = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return F.max_pool2d(a, 2) + b + a.mean()


EXPECTED_RUNS = {InOrder: 2, Modules: 2, Functions: 5, Blocks: 3, Skip: 1}  # fusable in eval mode


@pytest.fixture(params=EXPECTED_RUNS, ids=lambda style: style.__name__)
def style(request: pytest.FixtureRequest) -> type[nn.Module]:
    return request.param


@pytest.fixture
def expected_runs(style: type[nn.Module]) -> int:
    return EXPECTED_RUNS[style]


@pytest.fixture
def model(style: type[nn.Module]) -> nn.Module:
    """A float64 model of that style, with norms whose statistics and parameters are not the initial ones."""
    torch.manual_seed(0)
    model = style().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@pytest.fixture
def example() -> Tensor:
    return torch.randn(4, 3, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
