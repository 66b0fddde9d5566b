"""Which calls may go to an implementation at once, past torch's dispatcher.

The dispatcher comes back to Python twice for each op, for autograd and for the implementation.
After a layer has gone through its data, none of that is in the cache any more.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import Parameter

_PLAIN = (Tensor, Parameter)


def unobserved(*tensors: Tensor | None) -> bool:
    """Tell whether nothing would see an op with these tensors but autograd and its implementation.

    No torch.compile or trace, no mode (as of fake tensors), no transform (as vmap), no subclass of
    tensors, no profiler.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack()
        or torch._C._get_tracing_state()
        or torch._C._autograd._profiler_enabled()
    ) and all(tensor is None or type(tensor) in _PLAIN for tensor in tensors)


def below_autograd() -> AbstractContextManager[None]:
    """Spare the gradient's op its own autograd where nobody asks for a second derivative."""
    return nullcontext() if torch.is_grad_enabled() else torch._C._AutoDispatchBelowAutograd()
