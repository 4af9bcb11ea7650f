"""PSAQ-ViT: where attention is found, the entropy of similarities re-derived, and what images of it are like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfqkit import losses
from dfqkit.config.synthesis import Demand
from dfqkit.seeds import derive
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.synthesis.methods.psaq import PSAQConfig
from dfqkit.synthesis.methods.zeroq import ZeroQConfig
from dfqkit.teacher.attention import AttentionTap
from dfqkit.teacher.load import Teacher
from dfqkit.teacher.structure import provides
from dfqkit_export.errors import RecipeError
from tests._arrays import descend, draw
from tests._toys import IMAGE, images, tiny_transformer, toy_teacher

DEMAND = Demand(training=8, fresh=4)


def test_attention_is_found_however_it_is_written() -> None:
    x = images(3).requires_grad_()
    found = {}
    for kind in ("softmax", "fused"):
        model = tiny_transformer(kind=kind).model
        with AttentionTap() as tap:
            answer = model(x)
        assert [tuple(tokens.shape) for tokens in tap.tokens] == [(3, 17, 16)] * 2
        found[kind] = [tokens.detach() for tokens in tap.tokens]
        (gradient,) = torch.autograd.grad(tap.tokens[1].square().sum(), [x])
        assert bool(gradient.any())
        assert torch.equal(model(x), answer)
        assert len(tap.tokens) == 2, "nothing is read outside of the block"
    for one, other in zip(found["softmax"], found["fused"], strict=True):
        torch.testing.assert_close(one, other)


def test_torchs_module_is_read_behind_its_last_layer() -> None:
    x, model = images(3), tiny_transformer(kind="module").model
    read: list[Tensor] = []
    for layer in model.mixing:  # type: ignore[union-attr]
        layer.register_forward_hook(lambda _m, _i, output: read.append(output[0]))
    with AttentionTap() as tap, torch.no_grad():
        model(x)
    assert all(torch.equal(one, other) for one, other in zip(tap.tokens, read, strict=True))


def test_what_is_no_attention_is_not_read() -> None:
    scores, values = draw(2, 6, 5), draw(2, 5, 4)
    bins = draw(2, 6, 4, 8)
    with AttentionTap() as tap:
        scores.softmax(1) @ values  # over queries
        bins.softmax(-1) @ torch.arange(8.0)  # an expected bin
        scores.softmax(-1).mean(1)
        (scores * 2) @ values
        draw(7, 5).softmax(-1) @ draw(5, 4)
    assert tap.tokens == []
    with AttentionTap() as tap:
        torch.bmm(scores.softmax(dim=2), values)
        nn.functional.dropout(torch.softmax(draw(2, 3, 4, 6, 5), -1), 0.5, False) @ draw(2, 3, 4, 5, 7)
    assert [tuple(tokens.shape) for tokens in tap.tokens] == [(2, 6, 4), (6, 6, 28)]


def test_entropy_of_similarities_against_a_fine_integral() -> None:
    tokens, width = draw(3, 7, 4, seed=1, dtype=torch.float64), 0.05
    unit = tokens.numpy() / np.linalg.norm(tokens.numpy(), axis=2, keepdims=True)
    pairs = np.stack([(u @ u.T)[np.triu_indices(7, 1)] for u in unit])
    x = np.linspace(-1.5, 1.5, 20001)
    density = np.exp(-0.5 * ((x[None, :, None] - pairs[:, None]) / width) ** 2).mean(2) / (width * np.sqrt(2 * np.pi))
    wanted = np.trapezoid(density * np.log(density + 1e-300), x, axis=1).mean()
    assert float(losses.similarity_entropy(tokens, width, 200)) == pytest.approx(wanted, abs=0.01)
    assert float(losses.similarity_entropy(tokens, width)) == pytest.approx(wanted, abs=0.05)


def test_entropy_has_its_closed_form_where_all_tokens_are_alike() -> None:
    alike = draw(1, 1, 4, dtype=torch.float64).expand(2, 9, 4)
    expected = -np.log(0.05 * np.sqrt(2 * np.pi * np.e))  # of one kernel
    assert float(losses.similarity_entropy(alike)) == pytest.approx(expected, abs=0.03)
    assert float(losses.similarity_entropy(torch.zeros(1, 3, 4))) == pytest.approx(expected, abs=0.03)


def test_gradients_and_bound() -> None:
    tokens = draw(2, 5, 3, dtype=torch.float64).requires_grad_()
    # Where the integral is read follows the similarities, without gradient; far outside, that changes nothing.
    (found,) = torch.autograd.grad(losses.similarity_entropy(tokens, 0.2, 100), [tokens])
    step = 1e-5
    for place in ((0, 0, 0), (1, 3, 2)):
        moved = [tokens.detach().clone() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        up, down = (float(losses.similarity_entropy(x, 0.2, 100)) for x in moved)
        assert float(found[place]) == pytest.approx((up - down) / (2 * step), abs=0.02)
    zero = torch.zeros(1, 4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.similarity_entropy(zero), [zero])
    assert bool(gradient.isfinite().all())
    spread = draw(1, 30, 3)
    for _ in range(100):
        spread = descend(losses.similarity_entropy, spread, 1.0)
    assert -np.log(2.3) - 0.01 <= float(losses.similarity_entropy(spread)) < -0.5


def make(teacher: Teacher, **changes: object) -> object:
    config = PSAQConfig.model_validate({"batch": 8, "steps": 20, **changes})
    return build_synthesizer(config, teacher, derive(0, "psaq"), DEMAND)


@pytest.mark.parametrize("kind", ["softmax", "fused", "module"])
def test_optimising_raises_the_entropy_and_reaches_the_amount_of_detail(kind: str) -> None:
    teacher, options = tiny_transformer(kind=kind), {"steps": 40, "jitter": 0, "flip": False}
    alone = make(teacher, weights={"tv": 0, "one_hot": 0}, **options)
    terms = [alone.synthesize() for _ in range(40)]  # type: ignore[attr-defined]
    assert set(terms[0]) == {"entropy"}
    assert terms[-1]["entropy"] < terms[0]["entropy"] - 0.3
    made = make(teacher, **options)
    terms = [made.synthesize() for _ in range(40)]  # type: ignore[attr-defined]
    assert set(terms[0]) == {"entropy", "one_hot", "tv"}
    assert terms[-1]["tv"] < 0.1 * terms[0]["tv"]


def test_terms_are_what_they_are_called() -> None:
    teacher, x = tiny_transformer(), images(8)
    made = make(teacher, jitter=0, flip=False)
    made._start = lambda: x.clone()  # type: ignore[attr-defined]
    found = made.synthesize()  # type: ignore[attr-defined]
    with AttentionTap() as tap:
        logits = teacher.model(x)
    entropy = sum(float(losses.similarity_entropy(tokens)) for tokens in tap.tokens)
    ways = [x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]]
    ways += [x[..., 1:, 1:] - x[..., :-1, :-1], x[..., 1:, :-1] - x[..., :-1, 1:]]
    roughness = sum(float(way.square().sum().sqrt()) for way in ways) / x.numel() ** 0.5
    ce = nn.functional.cross_entropy(logits, made.labels)  # type: ignore[attr-defined]
    wanted = {"entropy": entropy, "one_hot": float(ce), "tv": abs(roughness - 1.25)}
    assert found == pytest.approx(wanted, rel=1e-4)


def test_of_many_tokens_some_are_compared() -> None:
    made = make(tiny_transformer(), tokens=5)
    some = made._some(torch.arange(17.0).reshape(1, 17, 1).expand(3, 17, 2))  # type: ignore[attr-defined]
    assert some.shape == (3, 5, 2)
    assert len(set(some[0, :, 0].tolist())) == 5
    assert torch.equal(some[0], some[2])
    made.synthesize()  # type: ignore[attr-defined]


def test_who_has_no_attention_is_refused_and_says_what_else_there_is() -> None:
    assert "tokens" in provides(tiny_transformer())
    assert "tokens" not in provides(toy_teacher("residual"))
    with pytest.raises(RecipeError, match=r"'psaq' needs attention between tokens.*Use one of .*zeroq"):
        make(toy_teacher("residual"))
    with pytest.raises(RecipeError, match=r"needs BatchNorm.*Use one of .*procedural, psaq"):
        build_synthesizer(ZeroQConfig(), tiny_transformer(), derive(0), DEMAND)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "blocks", "rows"),
    [
        ("vit_tiny_patch16_224", 12, 2),
        ("deit_tiny_distilled_patch16_224", 12, 2),
        ("swin_tiny_patch4_window7_224", 12, 128),
    ],
)
def test_transformers_of_timm(name: str, blocks: int, rows: int) -> None:
    timm = pytest.importorskip("timm")
    from dataclasses import replace

    image = replace(IMAGE, shape=(3, 224, 224), classes=1000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = Teacher.from_module(timm.create_model(name), image, name)
    with AttentionTap() as tap:
        teacher.logits(images(2, image=image))
    assert (len(tap.tokens), len(tap.tokens[0])) == (blocks, rows)
    config = PSAQConfig(batch=2, steps=3)
    made = build_synthesizer(config, teacher, derive(0), Demand(training=1, fresh=1))
    terms = [made.synthesize() for _ in range(3)]
    assert all(np.isfinite(list(each.values())).all() for each in terms)
    assert made.sample(1).shape == (1, 3, 224, 224)
