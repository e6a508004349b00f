"""Each optimiser by its name, with the options that it takes."""

from dataclasses import replace

import pytest
import torch

from mnistfast.options.learning import TrainConfig
from mnistfast.training.optimizers import capturable, make_optimizer, make_rates, saved, tie
from mnistfast.training.schedules import learning_rate

CONFIG = TrainConfig()


def test_optimizers():
    weights = [torch.zeros(2, requires_grad=True)]
    adam = make_optimizer(replace(CONFIG, betas=(0.7, 0.9)), weights)
    assert type(adam) is torch.optim.Adam
    assert adam.defaults["betas"] == (0.7, 0.9)
    adamw = make_optimizer(replace(CONFIG, optimizer="adamw", weight_decay=0.1), weights)
    assert type(adamw) is torch.optim.AdamW
    assert adamw.defaults["weight_decay"] == 0.1
    sgd = make_optimizer(replace(CONFIG, optimizer="sgd"), weights)
    assert (sgd.defaults["nesterov"], sgd.defaults["momentum"]) == (True, 0.9)
    assert not make_optimizer(replace(CONFIG, optimizer="sgd", momentum=0.0), weights).defaults["nesterov"]
    muon = make_optimizer(replace(CONFIG, optimizer="muon", momentum=0.8, betas=(0.7, 0.9)), weights)
    assert (muon.defaults["momentum"], muon.defaults["betas"]) == (0.8, (0.7, 0.9))


CPU = torch.device("cpu")


def tied(config, weights, steps=5):
    """Two groups, the second of which learns at half the rate."""
    groups = [{"params": weights[:1], "lr_scale": 1.0}, {"params": weights[1:], "lr_scale": 0.5}]
    optimizer = make_optimizer(config, groups)
    rates = make_rates(config, optimizer, steps, CPU)
    tie(optimizer, rates)
    return optimizer, rates


def test_what_is_kept_lies_as_its_parameter():
    weight = torch.zeros(4, 3, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    optimizer, rates = tied(CONFIG, [weight, torch.zeros(1, requires_grad=True)])
    kept = torch.randn(4, 3, 5, 5)
    optimizer.state[weight] = {"step": torch.tensor(3.0), "exp_avg": kept}
    tie(optimizer, rates)
    found = optimizer.state[weight]
    assert found["exp_avg"].stride() == weight.stride() != kept.stride()
    assert torch.equal(found["exp_avg"], kept)
    assert found["step"] == 3


def test_rates_of_all_steps_and_groups():
    config = replace(CONFIG, schedule="linear", lr=0.2)
    _, rates = tied(config, [torch.zeros(1), torch.zeros(1)])
    expected = [learning_rate("linear", step, 5, 0.2) for step in range(5)]
    assert rates.table.dtype == torch.float64
    assert rates.table.tolist() == [[rate, rate * 0.5] for rate in expected]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "muon"])
def test_capturable_while_it_is_recorded(name):
    optimizer, _ = tied(replace(CONFIG, optimizer=name), [torch.zeros(1), torch.zeros(1)])

    def asked():
        return {group.get("capturable") for group in optimizer.param_groups}

    before = asked()
    with capturable(optimizer):
        assert asked() == ({True} if name.startswith("adam") else {None})
    assert asked() == before == ({False} if name.startswith("adam") else {None})


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "muon"])
def test_a_rate_in_a_tensor_gives_the_bits_of_a_number(name):
    """Also after loading a state, saved with plain numbers."""
    config = replace(CONFIG, optimizer=name, weight_decay=0.01)
    torch.manual_seed(0)
    begin = [torch.randn(6, 4, 3, 3), torch.randn(7)]
    plain, ours = ([t.clone().requires_grad_() for t in begin] for _ in range(2))
    by_number = make_optimizer(config, [{"params": plain[:1]}, {"params": plain[1:]}])
    by_tensor, rates = tied(config, ours)
    for step in range(4):
        for group, lr in zip(by_number.param_groups, rates.table[step].tolist(), strict=True):
            group["lr"] = lr
        rates.lr.copy_(rates.table[step])
        for mine, theirs in zip(ours, plain, strict=True):
            mine.grad = torch.randn_like(mine)
            theirs.grad = mine.grad.clone()
        by_number.step()
        by_tensor.step()
        for mine, theirs in zip(ours, plain, strict=True):
            assert torch.equal(mine, theirs)
        state = saved(by_tensor)
        assert all(type(group["lr"]) is float for group in state["param_groups"])
        by_tensor.load_state_dict(state)
        tie(by_tensor, rates)
