"""Random state dicts with the names and shapes of the two official repositories, for a small CLIP."""

import torch

VISION, TEXT, DEPTH, EMBED, PATCH, IMAGE, CONTEXT, VOCABULARY = 128, 64, 3, 48, 16, 64, 77, 49408


def clip(split, seed=0, vision_depth=DEPTH, text_depth=DEPTH, vision=VISION, text=TEXT, image=IMAGE):
    """CLIP's own tensors, in OpenAI's names or (split) in MV-Adapter's, without ``clip.``."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape, std=0.02):
        return torch.randn(*shape, generator=g) * std

    state = {
        "positional_embedding": normal(CONTEXT, text, std=0.1),
        "text_projection": normal(text, EMBED, std=text**-0.5),
        "logit_scale": torch.tensor(4.6052),
        "visual.class_embedding": normal(vision, std=0.5),
        "visual.positional_embedding": normal((image // PATCH) ** 2 + 1, vision, std=0.5),
        "visual.proj": normal(vision, EMBED, std=vision**-0.5),
        "visual.conv1.weight": normal(vision, 3, PATCH, PATCH, std=(3 * PATCH**2) ** -0.5),
        "token_embedding.weight": normal(VOCABULARY, text, std=0.5),
    }

    def layer_norm(name, width):
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + normal(width, std=0.2), normal(width, std=0.2)

    def linear(name, rows, columns):
        state[f"{name}.weight"], state[f"{name}.bias"] = normal(rows, columns, std=columns**-0.5), normal(rows, std=0.2)

    for name, width in (("visual.ln_pre", vision), ("visual.ln_post", vision), ("ln_final", text)):
        layer_norm(name, width)
    for beginning, width, depth in (("visual.", vision, vision_depth), ("", text, text_depth)):
        for block in range(depth):
            at = f"{beginning}transformer.resblocks.{block}."
            if split:
                for part in ("q_proj", "k_proj", "v_proj"):
                    linear(f"{at}attn.{part}", width, width)
            else:
                state[f"{at}attn.in_proj_weight"] = normal(3 * width, width, std=width**-0.5)
                state[f"{at}attn.in_proj_bias"] = normal(3 * width, std=0.2)
            linear(f"{at}attn.out_proj", width, width)
            linear(f"{at}mlp.c_fc", 4 * width, width)
            linear(f"{at}mlp.c_proj", width, 4 * width)
            for name in ("attn.ln", "mlp.ln") if split else ("ln_1", "ln_2"):
                layer_norm(at + name, width)
    return state


def cross_modal(shared=16, bottleneck=8, **changes):
    """A Cross-Modal Adapter's whole model."""
    state = clip(False, **changes)
    g = torch.Generator().manual_seed(7)
    rows, vision, text = 2 * DEPTH, changes.get("vision", VISION), changes.get("text", TEXT)

    def pair(name, *shape):
        if shape[1]:
            state[f"{name}_weight"] = torch.randn(*shape, generator=g) * 0.3
            state[f"{name}_bias"] = torch.randn(*shape[:2], generator=g) * 0.3

    for encoder, width in (("visual", vision), ("text", text)):
        pair(f"{encoder}_adapter_down", rows, bottleneck, width)
        pair(f"{encoder}_adapter_up_unique", rows, width - shared, bottleneck)
    pair("vt_adapter_up_share", rows, shared, bottleneck)
    return {f"clip.{name}": value for name, value in state.items()}


def mv_adapter(tied=(1, 2), wide=True, norm=False, bottleneck=32, calibration=16, frames=4, words=9, factor=6, **changes):
    """An MV-Adapter's whole model. wide: its tie projections are as wide as the encoder, else as the bottleneck."""
    state = clip(True, **changes)
    g = torch.Generator().manual_seed(7)
    d = bottleneck

    def tensor(name, *shape, start=0.0):
        state[name] = start + torch.randn(*shape, generator=g) * 0.3

    def linear(name, rows, columns):
        tensor(f"{name}.weight", rows, columns)
        tensor(f"{name}.bias", rows)

    for k in range(len(tied)):
        tensor(f"prompt.{k}", factor)
    for beginning, width in (("visual.", changes.get("vision", VISION)), ("", changes.get("text", TEXT))):
        for block in range(DEPTH):
            at = f"{beginning}transformer.resblocks.{block}.mlp.adapter."
            tensor(f"{at}positional_embedding", 2 * frames + 1 if beginning else words, d)
            if beginning:
                tensor(f"{at}cc", d)
                linear(f"{at}conv_rf_c.g", d, d)
                linear(f"{at}conv_rf_c.a", calibration, 2 * d)
                tensor(f"{at}conv_rf_c.b.weight", d, calibration)
            linear(f"{at}down", d, width)
            linear(f"{at}up", width, d)
            tensor(f"{at}block.attn.in_proj_weight", 3 * d, d)
            tensor(f"{at}block.attn.in_proj_bias", 3 * d)
            linear(f"{at}block.attn.out_proj", d, d)
            linear(f"{at}block.mlp.c_fc", 4 * d, d)
            linear(f"{at}block.mlp.c_proj", d, 4 * d)
            for name, size in (("ln_pre", d), ("block.ln_1", d), ("block.ln_2", d), *((("ln_in", width),) if norm else ())):
                tensor(f"{at}{name}.weight", size, start=1.0)
                tensor(f"{at}{name}.bias", size)
            if block in tied:
                linear(f"{at}md_proj", width if wide else d, factor)
                state[f"{at}shared_factor"] = state[f"prompt.{tied.index(block)}"]
    return {f"clip.{name}": value for name, value in state.items()}


MAKERS = {"cross-modal": cross_modal, "mv-adapter": mv_adapter}
