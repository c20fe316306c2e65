"""Losses against the definitions in their docstrings."""

import math

import pytest
import torch

from models import info_nce, nt_xent, reconstruction_loss


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm_pix", [True, False])
def test_reconstruction_equals_its_definition(norm_pix):
    pred, target = rows(3, 5, 12), rows(3, 5, 12, seed=1) * 2 + 1
    mask = (rows(3, 5, seed=2) > 0).float()
    errors = []
    for b in range(3):
        for token in range(5):
            if mask[b, token] == 1:
                t = target[b, token].double()
                if norm_pix:
                    variance = ((t - t.mean()) ** 2).sum() / 11
                    t = (t - t.mean()) / math.sqrt(variance + 1e-6)
                errors.append(((pred[b, token].double() - t) ** 2).mean())
    expected = sum(errors) / len(errors)
    assert reconstruction_loss(pred, target, mask, norm_pix).item() == pytest.approx(
        float(expected), rel=1e-5
    )


def test_kept_patches_do_not_count():
    pred, target = rows(2, 4, 8).requires_grad_(), rows(2, 4, 8, seed=1)
    mask = torch.tensor([[1.0, 0, 0, 0], [1, 0, 1, 0]])
    reconstruction_loss(pred, target, mask, True).backward()
    assert pred.grad is not None
    assert ((pred.grad.abs().sum(-1) > 0) == (mask == 1)).all()


def test_a_constant_patch_is_finite():
    assert torch.isfinite(reconstruction_loss(rows(1, 2, 8), torch.ones(1, 2, 8), torch.ones(1, 2)))


@pytest.mark.parametrize(("first", "count"), [(0, 6), (2, 3)])
def test_info_nce_equals_its_definition(first, count):
    queries, keys = rows(6, 4)[first : first + count], rows(6, 4, seed=1)
    losses, hits = [], []
    for i in range(count):
        q = queries[i].double()
        scores = [float(q @ k / (q.norm() * k.norm()) / 0.07) for k in keys.double()]
        losses.append(-math.log(math.exp(scores[i + first]) / sum(map(math.exp, scores))))
        hits.append(scores.index(max(scores)) == i + first)
    loss, accuracy = info_nce(queries, keys, first, 0.07)
    assert loss.item() == pytest.approx(sum(losses) / count, rel=1e-5)
    assert accuracy.item() == pytest.approx(sum(hits) / count)
    assert not accuracy.requires_grad


def test_info_nce_of_rank_parts_is_that_of_the_whole():
    queries, keys = rows(6, 4), rows(6, 4, seed=1)
    parts = [info_nce(queries[i : i + 2], keys, i, 0.05)[0] for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), info_nce(queries, keys, 0, 0.05)[0])


def test_info_nce_of_perfect_pairs():
    loss, accuracy = info_nce(torch.eye(4), 3 * torch.eye(4), 0, 0.25)
    assert accuracy == 1
    assert loss.item() == pytest.approx(math.log1p(3 * math.exp(-4)), rel=1e-5)


def test_losses_are_float32_under_autocast():
    queries, keys = rows(6, 64), rows(6, 64, seed=1)
    target = rows(2, 5, 64)
    exact = (
        info_nce(queries, keys, 0, 0.05)[0],
        reconstruction_loss(queries[None], keys[None], torch.ones(1, 6)),
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(queries, keys, 0, 0.05)[0], exact[0])
        assert torch.equal(reconstruction_loss(queries[None], keys[None], torch.ones(1, 6)), exact[1])
        loss = reconstruction_loss(target.bfloat16(), target, torch.ones(2, 5))
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(("first", "count"), [(0, 6), (2, 3)])
def test_nt_xent_equals_its_definition(first, count):
    others, keys = rows(6, 4), rows(6, 4, seed=1)
    queries = others[first : first + count]

    def score(a, b):
        return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()) / 0.1)

    losses, hits = [], []
    for i in range(count):
        scores = [score(queries[i], k) for k in keys]
        rest = [score(queries[i], o) for j, o in enumerate(others) if j != i + first]
        losses.append(-math.log(math.exp(scores[i + first]) / sum(map(math.exp, scores + rest))))
        hits.append(max(scores + rest) == scores[i + first])
    loss, accuracy = nt_xent(queries, keys, others, first, 0.1)
    assert loss.item() == pytest.approx(sum(losses) / count, rel=1e-5)
    assert accuracy.item() == pytest.approx(sum(hits) / count)
    assert not accuracy.requires_grad


def test_nt_xent_has_the_gradient_of_its_definition():
    def naive(a, b):
        z = torch.cat([a, b]) / torch.cat([a, b]).norm(dim=1, keepdim=True)
        scores = (z @ z.T / 0.2).exp()
        total = torch.zeros(())
        for i in range(10):
            total = total - (scores[i, (i + 5) % 10] / (scores[i].sum() - scores[i, i])).log()
        return total / 10

    a, b = rows(5, 4).double().requires_grad_(), rows(5, 4, seed=1).double().requires_grad_()
    a32, b32 = (x.detach().float().requires_grad_() for x in (a, b))
    loss = (nt_xent(a32, b32, a32, 0, 0.2)[0] + nt_xent(b32, a32, b32, 0, 0.2)[0]) / 2
    expected = naive(a, b)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in ((a32, a), (b32, b)):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-6, rtol=1e-4)
