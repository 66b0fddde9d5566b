"""The loss term by term."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from atlas import objectives
from atlas.contracts import Batch, Decoded, Output

V = 6


def decoded(logits: torch.Tensor) -> Decoded:
    return Decoded(torch.log_softmax(logits, 1), torch.zeros_like(logits))


def test_the_likelihood_of_uniform_peaks() -> None:
    counts = torch.tensor([[4.0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0]])
    nats = objectives.peak_nll(decoded(torch.zeros(2, V)), counts)
    assert nats.tolist() == pytest.approx([4 * math.log(V) / 2] * 2)


@pytest.mark.parametrize(("temper", "weights"), [(0.0, (5, 5)), (0.5, (2, 10)), (1.0, (0.8, 20))])
def test_a_study_counts_by_a_power_of_its_peaks(temper: float, weights: tuple[float, ...]) -> None:
    counts = torch.tensor([[4.0, 0, 0, 0, 0, 0], [0, 25, 25, 25, 25, 0]])
    nats = objectives.peak_nll(decoded(torch.zeros(2, V)), counts, temper)
    assert nats.tolist() == pytest.approx([w * math.log(V) for w in weights])


def test_correlation_is_numpys_and_forgets_scale() -> None:
    maps, target = torch.rand(3, 50), torch.rand(3, 50)
    expected = [np.corrcoef(m, t)[0, 1] for m, t in zip(maps.numpy(), target.numpy())]
    torch.testing.assert_close(
        objectives.correlation(7 * maps, target), torch.tensor(expected, dtype=torch.float32)
    )
    assert objectives.correlation(torch.ones(1, 50), target[:1]).item() == 0


def test_kl_is_zero_at_the_prior_and_torchs_elsewhere() -> None:
    mean, log_variance = torch.randn(3, 4), torch.randn(3, 4)
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    prior = torch.distributions.Normal(torch.zeros(3, 4), torch.ones(3, 4))
    expected = torch.distributions.kl_divergence(posterior, prior)
    torch.testing.assert_close(objectives.kl_nats(mean, log_variance), expected)
    assert not objectives.kl_nats(torch.zeros(1, 4), torch.zeros(1, 4)).any()


def test_the_variance_learns_the_error_and_leaves_the_mean_alone() -> None:
    logits = torch.randn(1, V, requires_grad=True)
    log_variance = torch.zeros(1, V, requires_grad=True)
    target = torch.rand(1, V) * 3
    density = torch.log_softmax(logits, 1)
    objectives.voxel_nll(Decoded(density, log_variance), target).sum().backward()
    assert logits.grad is None
    error = (target - V * density.detach().exp()).square()
    best = objectives.voxel_nll(Decoded(density.detach(), error.log()), target)
    for shift in (-0.1, 0.1):
        worse = objectives.voxel_nll(Decoded(density.detach(), error.log() + shift), target)
        assert (worse > best).all()


def batch_and_output() -> tuple[Batch, Output]:
    volume = torch.rand(2, 1, 1, 1, V) + 0.1
    m, observed = torch.randn(2, 3), torch.tensor([[1.0, 1, 0], [1, 1, 0]])
    batch = Batch(volume, volume, torch.ones(2, V), m, observed, torch.tensor([3, -1]), ("a", "b"))
    kept = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    output = Output(
        torch.randn(2, 4), torch.zeros(2, 4), decoded(torch.randn(2, V)), kept,
        torch.zeros(2, 3), torch.zeros(2, 3), torch.randn(2, 10),
    )  # fmt: skip
    return batch, output


def test_only_hidden_observed_metadata_are_scored() -> None:
    batch, output = batch_and_output()
    hidden = torch.stack([batch.metadata_BM[0, 1], batch.metadata_BM[1, 0]])
    expected = 0.5 * hidden.square().mean()
    torch.testing.assert_close(objectives.hidden_nll(output, batch), expected)


@pytest.mark.parametrize("reconstruction", ["peaks", "mse", "correlation"])
def test_the_total_is_the_weighted_sum(reconstruction: str) -> None:
    from atlas.config import ObjectiveConfig

    batch, output = batch_and_output()
    weights = ObjectiveConfig(reconstruction=reconstruction, imputation=0.3, uncertainty=0.7)
    mask = torch.ones(1, 1, V, dtype=torch.bool)
    t = objectives.losses(output, batch, weights, mask, beta=0.2, year_weight=0.5)
    total = t.reconstruction + 0.2 * t.kl + 0.7 * t.uncertainty + 0.3 * t.imputation + 0.5 * t.year
    torch.testing.assert_close(t.total, total)
    known = torch.nn.functional.cross_entropy(output.year_logits_BY[:1], batch.year_bin_B[:1])
    torch.testing.assert_close(t.year, known)


def test_without_any_year_the_year_term_is_zero() -> None:
    batch, output = batch_and_output()
    assert objectives._year_loss(output.year_logits_BY, torch.tensor([-1, -1])) == 0
    assert objectives.relative_map(batch.target_B1XYZ, torch.ones(1, 1, V).bool()).mean() == (
        pytest.approx(1)
    )


def test_the_ordinal_year_adds_nine_binary_decisions() -> None:
    """Bin 2 of ten: above the thresholds 0 and 1, not above the other seven."""
    logits = torch.tensor([[2.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    nats = (
        math.log(1 + math.exp(-2)) + 2 * math.log(1 + math.exp(-1)) + 6 * math.log(2)
    )  # 0.12693 + 2 * 0.31326 + 4.15888
    assert nats == pytest.approx(4.91233, abs=1e-5)
    loss = objectives.year_nll(logits, torch.tensor([2]))
    assert float(loss) == pytest.approx(nats)
    both = objectives.year_nll(logits.expand(2, -1), torch.tensor([2, 0]))
    assert float(both) == pytest.approx((nats + nats + 2 + 1) / 2)  # -log(1-p) is -log(p) + logit


@pytest.mark.parametrize("size", [9, 10])
def test_gradients_of_both_year_heads(size: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, size, dtype=torch.double, requires_grad=True)
    bins = torch.tensor([0, 3, 9, 5])
    assert torch.autograd.gradcheck(lambda x: objectives.year_nll(x, bins), logits)
    if size == 9:  # of the mean over studies: (sigmoid - is it above?) / 4
        objectives.year_nll(logits, bins).backward()
        above = bins[:, None] > torch.arange(9)
        torch.testing.assert_close(logits.grad, (logits.detach().sigmoid() - above.double()) / 4)


def test_the_predicted_bin_of_both_year_heads() -> None:
    sure = torch.tensor([[3.0] * k + [-3.0] * (9 - k) for k in range(10)])
    assert objectives.predicted_bin(sure).tolist() == list(range(10))
    assert objectives.predicted_bin(torch.eye(10)).tolist() == list(range(10))
    crossed = torch.tensor([[2.0, -1.0, 1.0, -2.0, -2.0, -2.0, -2.0, -2.0, -2.0]])
    assert objectives.predicted_bin(crossed).tolist() == [
        2
    ]  # decisions that contradict are counted


def test_descending_either_year_head_finds_the_bin() -> None:
    bins = torch.arange(10)
    for size in (9, 10):
        logits = torch.zeros(10, size, requires_grad=True)
        for _ in range(50):
            (slope,) = torch.autograd.grad(objectives.year_nll(logits, bins), logits)
            logits = (logits - 20 * slope).detach().requires_grad_()
        assert objectives.predicted_bin(logits).tolist() == bins.tolist()


def test_a_model_without_a_year_head_has_no_year_term() -> None:
    from atlas.config import ObjectiveConfig

    batch, output = batch_and_output()
    mask = torch.ones(1, 1, V, dtype=torch.bool)
    terms = objectives.losses(
        output._replace(year_logits_BY=None), batch, ObjectiveConfig(), mask, 0.2, 5.0
    )
    assert terms.year == 0 and torch.isfinite(terms.total)
