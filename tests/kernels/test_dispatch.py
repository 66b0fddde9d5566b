"""Choosing an implementation, saying why not, and the table that shows both."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import atlas_kernels
import atlas_kernels.numpy
from atlas_kernels import _dispatch, _extension
from atlas_kernels._dispatch import Implementation, choose
from atlas_kernels._eager import unobserved

from .cases import CASES, inputs


def row(name: str, reason: str | None = None, devices: tuple[str, ...] | None = None):
    return Implementation(name, print, print, lambda: reason, devices)


GPU, CPU, SLOW = row("gpu", None, ("cuda",)), row("quick", None, ("cpu",)), row("slow")
BROKEN = row("broken", "it was not built", ("cpu",))


def test_auto_takes_the_first_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_dispatch.ENVIRONMENT, raising=False)
    assert choose("op", (GPU, CPU, SLOW), "auto", "cpu") is CPU
    assert choose("op", (GPU, CPU, SLOW), "auto", "cuda") is GPU
    assert choose("op", (CPU, SLOW), "auto", "cuda") is SLOW  # and no warning: nothing is missing


def test_auto_says_when_it_must_take_a_slower_one() -> None:
    with pytest.warns(RuntimeWarning, match="op runs on the slower 'slow' .* it was not built"):
        assert choose("op", (BROKEN, SLOW), "auto", "cpu") is SLOW


def test_a_forced_one_that_cannot_run_says_why() -> None:
    with pytest.raises(RuntimeError, match="backend 'broken' cannot run: it was not built"):
        choose("op", (BROKEN, SLOW), "broken", "cpu")
    with pytest.raises(RuntimeError, match="it takes cuda tensors, these are on cpu"):
        choose("op", (GPU, SLOW), "gpu", "cpu")
    with pytest.raises(RuntimeError, match=r"no implementation runs here. broken: it was not"):
        choose("op", (BROKEN,), "auto", "cpu")


def test_the_environment_replaces_auto_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_dispatch.ENVIRONMENT, "slow")
    assert choose("op", (CPU, SLOW), "auto", "cpu") is SLOW
    assert choose("op", (CPU, SLOW), "quick", "cpu") is CPU
    monkeypatch.setenv(_dispatch.ENVIRONMENT, "typo")
    with pytest.raises(ValueError, match=r"auto, quick, slow .*ATLAS_KERNELS_BACKEND.* got 'typo'"):
        choose("op", (CPU, SLOW), "auto", "cpu")


def test_the_environment_may_name_what_only_other_ops_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(_dispatch.ENVIRONMENT, "triton")  # group_norm_film's
    assert choose("op", (CPU, SLOW), "auto", "cpu") is CPU


def test_the_environment_reaches_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_dispatch.ENVIRONMENT, "abacus")
    with pytest.raises(ValueError, match="abacus"):
        inputs(CASES[0]).splat()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_tensors_run_on_the_reference() -> None:
    given = inputs(CASES[0])
    want = given.splat(backend="reference")
    for name in ("peaks", "offsets", "fwhm"):
        setattr(given, name, getattr(given, name).cuda())
    torch.testing.assert_close(given.splat().cpu(), want)


@pytest.mark.parametrize("op", _dispatch.OPS)
def test_table_as_data(op: str) -> None:
    rows = [line for line in atlas_kernels.implementations() if line["op"] == op]
    table = import_module(f"atlas_kernels.{op}.op").TABLE
    for_arrays = ["numpy"] if op in _dispatch.FOR_ARRAYS else []
    assert [line["implementation"] for line in rows] == [row.name for row in table] + for_arrays
    for line in rows:
        assert set(line) == {"op", "implementation", "devices", "note", "why_not"}


@pytest.mark.parametrize("op", _dispatch.OPS)
def test_every_table_ends_with_the_reference_which_runs_everywhere(op: str) -> None:
    last = import_module(f"atlas_kernels.{op}.op").TABLE[-1]
    assert last.name == "reference" and last.devices is None and last.why_not() is None


def test_the_ops_for_arrays_are_those_of_the_numpy_module() -> None:
    assert set(_dispatch.FOR_ARRAYS) == set(_dispatch.OPS) & set(atlas_kernels.numpy.__all__)


def test_every_op_is_listed_and_exported() -> None:
    assert set(_dispatch.OPS) | {"Grid", "__version__", "implementations"} == set(
        atlas_kernels.__all__
    )


def test_table_as_text_and_json() -> None:
    command = [sys.executable, "-m", "atlas_kernels"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"atlas_kernels {atlas_kernels.__version__}" in text and "reference" in text
    data = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True).stdout)
    assert data["version"] == atlas_kernels.__version__
    assert (data["extension"] is None) == bool(_extension.why_missing())
    assert data["implementations"] == atlas_kernels.implementations()


WITHOUT_EXTENSION = """
import sys, warnings
sys.modules["atlas_kernels._kernels"] = None  # what an import finds that was not built
sys.modules["numba"] = None
import torch
import atlas_kernels
from atlas_kernels.__main__ import as_text, report
text = as_text(report())
assert "extension: none, so what remains is slower" in text, text
assert "the C++ extension is not built" in text, text
grid = atlas_kernels.Grid((3, 4, 5), [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
call = lambda **kw: atlas_kernels.splat(
    torch.zeros(1, 3), torch.tensor([0, 1]), grid, 6.0, **kw)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert call()[0, 0, 0, 0, 0] == 1
assert "runs on the slower 'reference'" in str(caught[0].message)
assert "the C++ extension is not built" in str(caught[0].message)
x = torch.randn(1, 8, 2, 2, 2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    atlas_kernels.group_norm_film(x, 1)
    atlas_kernels.dense_block(x, [torch.zeros(8, 8, 3, 3, 3)], [torch.ones(8)], [torch.ones(8)], [],
                              [], [1])
assert [str(w.message).split()[0] for w in caught] == ["group_norm_film", "dense_block"]
try:
    call(backend="cpu")
except RuntimeError as error:
    assert "install a C++17 compiler" in str(error)
else:
    raise AssertionError
import numpy
from atlas_kernels.numpy import splat
try:
    splat(numpy.zeros((1, 3)), [0, 1], grid, 6.0)
except ImportError as error:
    assert "the C++ extension is not built" in str(error)
else:
    raise AssertionError
"""


def test_without_the_extension() -> None:
    run_python(WITHOUT_EXTENSION)


WITH_NUMBA_ALONE = """
import sys, warnings
sys.modules["atlas_kernels._kernels"] = None
import numpy
from atlas_kernels import Grid
from atlas_kernels.numpy import splat as splat_arrays
grid = Grid((3, 4, 5), [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
arrays = splat_arrays(numpy.ones((2, 3)), [0, 2], grid, 6.0, dtype="float16", mode="union")
assert "torch" not in sys.modules
import torch
from atlas_kernels import splat
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    got = splat(torch.ones(2, 3), torch.tensor([0, 2]), grid, 6.0, mode="union")
assert "runs on the slower 'numba'" in str(caught[0].message), caught
want = splat(torch.ones(2, 3), torch.tensor([0, 2]), grid, 6.0, mode="union", backend="reference")
torch.testing.assert_close(got, want)
assert numpy.allclose(arrays, want.numpy(), rtol=1e-3)
"""


def test_numba_takes_the_extensions_place() -> None:
    pytest.importorskip("numba")
    run_python(WITH_NUMBA_ALONE)


def test_import_is_lazy() -> None:
    run_python(
        """
        import sys, atlas_kernels
        assert callable(atlas_kernels.splat)
        import atlas_kernels.splat.native
        import atlas_kernels.dense_block, atlas_kernels.group_norm_film
        for op in ("splat", "group_norm_film", "dense_block"):
            assert callable(getattr(atlas_kernels, op)), "the folder of that name took its place"
        assert not {"torch", "numpy", "nimare"} & set(sys.modules)
        """
    )


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


# ---- calls past the dispatcher -------------------------------------------------------------------


class Seen(TorchDispatchMode):
    """Note the names of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "atlas_kernels":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def norm(x: torch.Tensor) -> torch.Tensor:
    return atlas_kernels.group_norm_film(x, 2)


def block(x: torch.Tensor) -> torch.Tensor:
    ones = torch.ones(4)
    return atlas_kernels.dense_block(
        x, [torch.ones(4, 4, 3, 3, 3)], [ones], [ones], [], [], dilations=[1], groups_size=2
    )


@pytest.mark.parametrize(
    ("layer", "name"), [(norm, "group_norm_film"), (block, "dense_block")], ids=["norm", "block"]
)
def test_who_looks_sees_the_operator(
    layer: Callable[..., torch.Tensor], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 4, 3, 4, 5, requires_grad=True)

    def both() -> tuple[torch.Tensor, ...]:
        y = layer(x)
        return y, *torch.autograd.grad(y, x, torch.ones_like(y))

    with monkeypatch.context() as without:
        for op in (name, f"{name}_backward"):
            without.setattr(torch.ops.atlas_kernels, op, None)
        alone = both()
    with Seen() as seen:
        watched = both()
    assert seen.names == [name, f"{name}_backward"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        both()
    events = {event.name for event in profiled.events()}
    assert {f"atlas_kernels::{name}", f"atlas_kernels::{name}_backward"} <= events
    for a, b in zip(alone, watched, strict=True):
        assert torch.equal(a, b)


def test_what_is_unobserved() -> None:
    class Other(torch.Tensor):
        pass

    x = torch.zeros(3)
    assert unobserved(x, None, torch.nn.Parameter(x))
    assert not unobserved(x, x.as_subclass(Other))
    with FakeTensorMode() as mode:
        assert not unobserved(x)
    assert not unobserved(mode.from_tensor(x))
    seen = []
    torch.func.vmap(lambda row: seen.append(unobserved(row)) or row)(torch.zeros(2, 3))
    torch.jit.trace(lambda x: seen.append(unobserved(x)) or x + 1, x, check_trace=False)
    assert seen == [False, False]
    assert torch.compile(lambda x: x + unobserved(x), backend="eager")(x).sum() == 0
