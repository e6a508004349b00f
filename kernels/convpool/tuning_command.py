"""`python -m convpool.tune`: tune a model that a factory makes, and show or clear what was measured on this machine."""

import argparse
import importlib
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import nn

from convpool import choices
from convpool.tuning import tune


class _Refused(Exception):
    """What is asked for cannot be done; the message is for people, of one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for and return the exit status: 2 where it asks for what cannot be done.

    Args:
        arguments: the command line; by default this process'.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    if options.show + options.clear + (options.factory is not None) != 1:
        parser.error("give one of MODULE:FACTORY, --show and --clear")
    try:
        if options.show:
            print(_table(device))
        elif options.clear:
            print(_cleared(device))
        else:
            print(_tuned(options, device))
    except _Refused as error:
        parser.error(str(error))
    return 0


def _parser() -> _Parser:
    parser = _Parser(prog="python -m convpool.tune", description="Measure which plans of a model's calls are fastest.")
    parser.add_argument("factory", nargs="?", metavar="MODULE:FACTORY", help="a function that makes the model")
    parser.add_argument("--example", type=_shape, metavar="SHAPE", help="of the model's input, as in 8,3,32,32")
    parser.add_argument("--training", action="store_true", help="tune calls with gradients; else without")
    parser.add_argument("--channels-last", action="store_true", help="model and example in channels_last")
    parser.add_argument("--seconds", type=_seconds, default=30.0, metavar="S", help="for everything (%(default)g)")
    parser.add_argument("--threads", type=_count, metavar="N", help="of a CPU, for which the choices hold")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default cuda where there is a GPU")
    parser.add_argument("--show", action="store_true", help="print the choices for this machine, and where they lie")
    parser.add_argument("--clear", action="store_true", help="remove the choices for this machine")
    return parser


def _shape(text: str) -> tuple[int, ...]:
    return tuple(_count(size) for size in text.split(","))


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be of whole numbers from 1, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text!r}")
    return seconds


def _table(device: torch.device) -> str:
    path = choices.file_of(device)
    if path is None:
        return "choices are neither read nor kept: there is no cache folder, or CONVPOOL_CACHE is off"
    found = choices.in_force(device).by_call
    lines = [f"{call}: {choice.plan} ({_figures(choice)}; {choice.date})" for call, choice in sorted(found.items())]
    return "\n".join([*lines, f"{len(found)} choice{'s' * (len(found) != 1)} in {path}"])


def _figures(choice: choices.Choice) -> str:
    ordered = sorted(choice.seconds.items(), key=lambda item: item[1])
    return ", ".join(f"{plan} {seconds * 1e3:.3g} ms" for plan, seconds in ordered)


def _cleared(device: torch.device) -> str:
    try:
        path = choices.clear(device)
    except OSError as error:
        raise _Refused(f"--clear: {error}") from error
    return "nothing to remove" if path is None else f"removed {path}"


def _tuned(options: argparse.Namespace, device: torch.device) -> str:
    if options.example is None:
        raise _Refused("--example is needed: the shape of the model's input, as in 8,3,32,32")
    if options.channels_last and len(options.example) != 4:
        raise _Refused(f"--channels-last needs an --example of four sizes, got {len(options.example)}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = _made(options.factory).train(options.training).to(device)
    example = torch.randn(options.example, device=device)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
        example = example.to(memory_format=torch.channels_last)
    try:
        return str(tune(model, example, seconds=options.seconds))
    except Exception as error:  # a model of anybody's
        raise _Refused(f"{options.factory}: it cannot be tuned: {_in_short(error)}") from error


def _made(factory: str) -> nn.Module:
    """The model of MODULE:FACTORY."""
    module, _, name = factory.partition(":")
    if not module or not name:
        raise _Refused(f"the factory must be MODULE:FACTORY, got {factory!r}")
    try:
        model = getattr(importlib.import_module(module), name)()
    except Exception as error:  # a module of anybody's
        raise _Refused(f"{factory}: {_in_short(error)}") from error
    if not isinstance(model, nn.Module):
        raise _Refused(f"{factory} must make an nn.Module, got {type(model).__name__}")
    return model


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
