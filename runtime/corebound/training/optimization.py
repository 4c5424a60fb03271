"""`corebound.optimize`: prepares a torch module for inference, and tells what it changed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from corebound.config.suggest import require_choice
from corebound.errors import ConfigError
from corebound.quantization import Scheme, is_scheme, parse_scheme
from corebound.training import ipex_backend, native_backend
from corebound.training.report import OptimizationReport, attach, report_of
from corebound.training.request import Request

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_BACKENDS: dict[str, Callable[[nn.Module, Request], tuple[nn.Module, OptimizationReport]]] = {
    "native": native_backend.optimize,
    "ipex": ipex_backend.optimize,
}


def optimize(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    dtype: torch.dtype | str | Scheme = torch.bfloat16,
    backend: str = "native",
    *,
    weights_prepack: bool | None = None,
    fuse: bool = True,
) -> nn.Module:
    """Return `model` made ready for inference in `dtype`: changed in place and still a module.

    Backend `native` converts the weights and puts Corebound's operators in place of linear layers, norms and, with
    `fuse`, the gated MLPs that it knows; it works under autocast and torch.compile. `dtype` is float32, bfloat16 or
    float16, or a scheme for the weights alone, such as `int8`, `int4` or `int4:g64:sym`, computed in bfloat16.
    `weights_prepack` puts bfloat16 weights into the kernels' own layout; None does where that pays, and quantized ones
    always are. Packed weights are frozen; `state_dict()` has what the layers compute with. Backend `ipex` calls Intel
    Extension for PyTorch, which is off by default, see docs/ipex.md. `corebound.optimization_report` tells what was
    changed.

    Raises: ConfigError for a module in training mode, an optimizer (this is for inference; training comes later), a
    dtype or backend that is not one of the choices, or weights that are not floating-point tensors on the CPU;
    HostError and ModelError from backend `ipex`; KernelError from backend `native`.
    """
    change = _BACKENDS[require_choice("backend", backend, _BACKENDS, where="optimize")]
    if optimizer is not None:
        raise ConfigError(
            f"optimize: optimizer is {type(optimizer).__name__}, but only inference can be optimized",
            hint="leave it out; training comes with a later release",
        )
    request = _request(dtype, weights_prepack, fuse)
    _check_module(model)
    optimized, report = change(model, request)
    attach(optimized, report)
    return optimized


def _request(dtype: object, weights_prepack: bool | None, fuse: bool) -> Request:
    if dtype is torch.int8:
        dtype = "int8"
    if isinstance(dtype, str) and is_scheme(dtype):
        dtype = parse_scheme(dtype)
    if isinstance(dtype, Scheme):
        if weights_prepack is False:
            raise ConfigError("optimize: weights_prepack=False, but quantized weights are always packed")
        return Request(dtype=torch.bfloat16, scheme=dtype, fuses=fuse)
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        names = ", ".join(map(str, DTYPES))
        raise ConfigError(
            f"optimize: dtype is {dtype!r}, expected one of {names}, or a scheme such as 'int8' or 'int4:g64:sym'"
        )
    if weights_prepack and dtype != torch.bfloat16:
        raise ConfigError(f"optimize: weights_prepack=True needs bfloat16 or a scheme, found {dtype}")
    return Request(dtype=dtype, packs=weights_prepack, fuses=fuse)


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"optimize: expected a torch.nn.Module, found {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise ConfigError(
            f"optimize: this {type(model).__name__} is compiled already", hint="optimize the module, then compile it"
        )
    known = report_of(model)
    if known is not None:
        raise ConfigError(
            f"optimize: this module was optimized before, by backend {known.backend} for {known.dtype}",
            hint="print corebound.optimization_report(model), or load the model again",
        )
    if model.training:
        raise ConfigError("optimize: the module is in training mode", hint="call model.eval() first")
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu" or not parameter.is_floating_point():
            raise ConfigError(
                f"optimize: parameter {name}: expected floating point on the CPU, found {parameter.dtype} on "
                f"{parameter.device}"
            )
