"""Each optimiser by its name, with the options that it takes."""

from dataclasses import replace

import torch

from mnistfast.options.learning import TrainConfig
from mnistfast.training.optimizers import align, make_optimizer

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


def test_what_is_kept_lies_as_its_parameter():
    weight = torch.zeros(4, 3, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    optimizer = make_optimizer(CONFIG, [weight])
    kept = torch.randn(4, 3, 5, 5)
    optimizer.state[weight] = {"step": torch.tensor(3.0), "exp_avg": kept}
    align(optimizer)
    found = optimizer.state[weight]
    assert found["exp_avg"].stride() == weight.stride() != kept.stride()
    assert torch.equal(found["exp_avg"], kept)
    assert found["step"] == 3
