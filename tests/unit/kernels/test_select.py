# SPDX-License-Identifier: Apache-2.0
"""Choosing a backend, and the portable build of the native kernels."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from tests.unit.kernels.helpers import (
    backend,
    build_batch,
    native_library,
    packed,
    random,
    reference_attention,
    relative_error,
)
from ziggurat import kernels
from ziggurat.errors import ConfigError
from ziggurat.kernels import ops as ops_module


def test_auto_is_native_when_it_is_built():
    native_library()
    assert kernels.select("auto").name == "native"
    description = kernels.describe("auto")
    assert description["backend"] == "native"
    assert description["isa"] in ("avx512vnni", "avx512", "avx2", "portable")


def test_without_the_library_auto_says_that_it_is_slower(monkeypatch):
    monkeypatch.setattr(ops_module, "load_native", lambda: None)
    assert kernels.select("auto").name == "torch"
    assert "slower" in str(kernels.describe("auto")["note"])
    with pytest.raises(ConfigError, match="--kernels torch"):
        kernels.select("native")


def test_a_library_from_other_sources_is_refused(monkeypatch):
    library = native_library()
    monkeypatch.setattr(library, "ABI", 0)
    with pytest.raises(ConfigError, match="make native"):
        kernels.select("auto")


def test_rows_are_selected():
    x, rows = random(1, 9, 12), torch.tensor([8, 0, 3, 3])
    for name in ("native", "torch"):
        out = torch.empty(4, 12)
        backend(name).select_rows(x, rows, out)
        assert torch.equal(out, x[rows])
        with pytest.raises(ValueError, match=r"rows: 0 \.\. 9 outside 9 rows"):
            backend(name).select_rows(x, torch.tensor([0, 9, 1, 1]), out)


def test_unknown_backend():
    with pytest.raises(ConfigError, match="did you mean 'native'"):
        kernels.select("nativ")


def test_callers_on_many_threads_get_their_own_answers():
    """The pool runs one job at a time; a caller never sees another's tasks."""
    ops = backend("native", num_threads=3)
    panels = packed(ops, random(1, 400, 200).bfloat16())
    inputs = [random(seed, 7, 200) for seed in range(4)]
    expected = [torch.empty(7, 400) for _ in inputs]
    for x, out in zip(inputs, expected, strict=True):
        ops.linear(x, panels, out)
    wrong: list[int] = []

    def call(index: int) -> None:
        out = torch.empty(7, 400)
        for _ in range(200):
            ops.linear(inputs[index], panels, out)
            if not torch.equal(out, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    backend("native", num_threads=2)
    assert not wrong


def test_a_forked_child_computes_without_workers():
    """Callers wait for tasks, never for workers, so a child that has none still finishes."""
    ops = backend("native", num_threads=2)
    x, weight = random(1, 5, 300), random(2, 600, 300)
    panels, out = packed(ops, weight), torch.empty(5, 600)
    ops.linear(x, panels, out)
    child = os.fork()
    if child == 0:
        again = torch.empty(5, 600)
        ops.linear(x, panels, again)
        os._exit(0 if again.numpy().tobytes() == out.numpy().tobytes() else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_threads_can_be_set():
    library = native_library()
    before = library.num_threads()
    backend("native", num_threads=3)
    assert library.num_threads() == 3
    backend("native", num_threads=before)


@pytest.fixture(params=["avx512vnni", "avx512", "avx2", "portable"])
def one_isa(request):
    """Each instruction set that this processor has, not only the one that would be chosen."""
    library = native_library()
    if request.param not in library.supported_isas():
        pytest.skip(f"this processor or build has no {request.param}")
    before = library.isa()
    assert library.select_isa(request.param)
    yield backend("native")
    assert library.select_isa(before)


def test_every_instruction_set_computes_the_same(one_isa):
    x, weight = random(1, 9, 70), random(2, 40, 70).bfloat16()
    panels, out = packed(one_isa, weight), torch.empty(9, 40)
    one_isa.linear(x, panels, out)
    assert relative_error(out, x.double() @ weight.double().T) < 1e-5
    for row in range(9):
        single = torch.empty(1, 40)
        one_isa.linear(x[row : row + 1], panels, single)
        assert torch.equal(single, out[row : row + 1])
    for format_name in ("fp32", "bf16", "fp16"):
        batch = build_batch(3, [(70, 5), (0, 30)], format_name=format_name, num_heads=6, num_kv_heads=2, head_dim=80)
        assert relative_error(batch.attend(one_isa, 0.125, 40), reference_attention(batch, 0.125, 40)) < 2e-6
    gates, activated = random(4, 3, 26), torch.empty(3, 13)
    one_isa.gated_activation(gates, activated)
    gate, up = gates.double().chunk(2, 1)
    assert relative_error(activated, torch.nn.functional.silu(gate) * up) < 1e-6


@pytest.mark.parametrize("num_rows", [1, 2, 5, 7, 13, 40, 120])
def test_wider_registers_give_a_linear_the_same_bits(num_rows):
    library = native_library()
    if "avx512" not in library.supported_isas():
        pytest.skip("this processor or build has no avx512")
    before, ops = library.isa(), backend("native")
    x, panels = random(1, num_rows, 77), packed(ops, random(2, 150, 77).bfloat16())
    outs = []
    try:
        for isa in ("avx512", "avx2"):
            assert library.select_isa(isa)
            outs.append(torch.empty(num_rows, 150))
            ops.linear(x, panels, outs[-1])
    finally:
        library.select_isa(before)
    assert torch.equal(*outs)


def test_an_unknown_instruction_set_changes_nothing():
    library = native_library()
    before = library.isa()
    assert not library.select_isa("avx9")
    assert library.isa() == before
