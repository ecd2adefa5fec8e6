"""In training, the last block is computed for the token that is read alone: nothing else may depend on it."""

import pytest
import torch
from support import ready, with_stream

from xmafast import METHODS, Retriever, blocks
from xmafast.losses import contrastive_loss

NAMES = [name for name, method in METHODS.items() if not method.on_features]
TOKENWISE = ["cross-modal", "adapter", "adaptformer", "uniadapter", "mrs", "multi-head", "lora", "clip-lora", "full", "bias"]


def model_of(demo_backbone, method, **options):
    torch.manual_seed(0)
    given = {**ready(method), **options}
    if "dropout" in METHODS[method].known_options():
        given["dropout"] = 0.0
    model = with_stream(Retriever(demo_backbone, method, **given))
    for parameter in model.trained.values():
        parameter.data.add_(0.02 * torch.randn_like(parameter))  # away from the start, where much is zero
    return model.train()


def outcome(model, frames, texts):
    """Both encoders' embeddings, and the gradients of the loss."""
    for parameter in model.trained.values():
        parameter.grad = None
    text, video = model.encode_text(texts), model.encode_frames(frames)
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    contrastive_loss(model, text, video, mask, torch.arange(len(texts))).backward()
    return text, video, {name: parameter.grad for name, parameter in model.trained.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_token_that_is_read_has_the_embedding_and_the_gradients_of_the_whole_block(name, demo_backbone, monkeypatch):
    model, generator = model_of(demo_backbone, name), torch.Generator().manual_seed(0)
    size = demo_backbone.image_size
    frames = torch.randint(0, 256, (3, 2, size, size, 3), dtype=torch.uint8, generator=generator)
    texts = ["a red heart", "a dog that runs after a ball", "blue"]
    read = outcome(model, frames, texts)
    monkeypatch.setattr(blocks, "_read_alone", lambda block, x, place: False)
    whole = outcome(model, frames, texts)
    for ours, theirs in zip(read[:2], whole[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for parameter, gradient in whole[2].items():
        assert (read[2][parameter] is None) == (gradient is None), parameter
        if gradient is not None:
            torch.testing.assert_close(read[2][parameter], gradient, rtol=1e-3, atol=2e-6, msg=lambda text, p=parameter: f"{p}: {text}")


@pytest.mark.parametrize("name", TOKENWISE)
def test_methods_that_treat_each_token_by_itself_spare_the_rest_of_the_last_block(name, demo_backbone, monkeypatch):
    taken = []
    original = blocks.read_block
    monkeypatch.setattr(blocks, "read_block", lambda *given: taken.append(given[1]) or original(*given))
    model = model_of(demo_backbone, name)
    frames = torch.zeros(2, 1, demo_backbone.image_size, demo_backbone.image_size, 3, dtype=torch.uint8)
    model.encode_frames(frames), model.encode_text(["a", "b"])
    assert taken == [demo_backbone.clip.visual.transformer.resblocks[-1], demo_backbone.text.transformer.resblocks[-1]]
    with torch.no_grad():
        model.encode_frames(frames), model.encode_text(["a", "b"])
    assert len(taken) == 2  # evaluation is the libraries' own


def test_a_text_is_read_at_its_own_end(demo_backbone):
    model = model_of(demo_backbone, "adapter")
    short, long = "a dog", "a dog that runs after a red ball on the green grass of the park"
    both, alone = model.encode_text([short, long]), model.encode_text([short])
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-2)
    with torch.no_grad():
        torch.testing.assert_close(both, model.encode_text([short, long]), rtol=1e-4, atol=1e-5)


def test_run_again_in_the_backward_pass_it_gives_the_same_gradients(demo_backbone):
    model = model_of(demo_backbone, "cross-modal")
    frames = torch.randint(0, 256, (2, 2, demo_backbone.image_size, demo_backbone.image_size, 3), dtype=torch.uint8)
    kept = outcome(model, frames, ["a", "b"])[2]
    with blocks.checkpointed():
        again = outcome(model, frames, ["a", "b"])[2]
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7)
