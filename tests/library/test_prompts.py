"""Prompts, against open_clip's own blocks and tokens."""

import torch

from xmafast.retriever import Retriever


def moved(backbone, method, **options):
    model = Retriever(backbone, method, **options).eval()
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    return model


def with_prompts(x, blocks, prompts, causal):
    """open_clip's own blocks, each with its prompts after the first token."""
    for block, own in zip(blocks, prompts, strict=True):
        longer = torch.cat([x[:, :1], own.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        t = longer.shape[1]
        mask = torch.full((t, t), -torch.inf).triu(1) if causal else None
        x = block(longer, attn_mask=mask)
        x = torch.cat([x[:, :1], x[:, 1 + own.shape[0] :]], dim=1)
    return x


def pixels(n=2):
    return torch.randint(0, 256, (n, 1, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def image_of(backbone, prompts):
    visual = backbone.clip.visual
    x = with_prompts(visual._embeds(backbone.normalise(pixels().flatten(0, 1))), visual.transformer.resblocks, prompts, False)
    return visual._pool(x)[0] @ visual.proj


def text_of(backbone, tokens, prompts):
    clip = backbone.clip
    x = clip.token_embedding(tokens) + clip.positional_embedding[: tokens.shape[1]]
    x = clip.ln_final(with_prompts(x, clip.transformer.resblocks, prompts, True))
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ clip.text_projection


@torch.no_grad()
def test_deep_prompts_enter_each_block_and_leave_after_it(demo_backbone):
    tokens = demo_backbone.tokenize(["red heart", "a big owl sits"], 16)
    close = {"rtol": 1e-3, "atol": 1e-4}
    for method in ("vpt", "vl-prompt", "maple"):
        model = moved(demo_backbone, method, tokens=3)
        m = model.method
        if method == "maple":  # six vision blocks and three of text: every second one has a partner
            mapped = [coupling(text) for coupling, text in zip(m.coupling, m.text, strict=True)]
            vision = [own for pair in zip(m.vision, mapped, strict=True) for own in pair]
        else:
            vision = m.vision
        torch.testing.assert_close(model.encode_frames(pixels())[:, 0], image_of(demo_backbone, vision), **close)
        if method != "vpt":
            torch.testing.assert_close(model.encode_text(tokens), text_of(demo_backbone, tokens, m.text), **close)


@torch.no_grad()
def test_context_words_act_as_words_at_their_positions(demo_backbone):
    model = Retriever(demo_backbone, "coop", tokens=2).eval()
    caption, longer = demo_backbone.tokenize(["heart", "big red heart"], 12)
    words = longer[1:3]  # "big red"
    model.method.text.copy_(demo_backbone.clip.token_embedding(words))
    with_context = model.encode_text(caption[None, :10])
    torch.testing.assert_close(with_context, demo_backbone.encode_text(longer[None]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_long_caption_makes_room_for_context_words(demo_backbone):
    model = moved(demo_backbone, "coop", tokens=4, words=1000)
    assert model.encode_text(["heart " * 200]).isfinite().all()
