"""Which of timm's families work as backbones: built, trained two steps, exported, scores compared.

Claim: the table in docs/backbones.md. Networks are not pretrained, and images are small, so that
one takes seconds to a minute. A network that is in the log is not run again.

    uv run --extra timm python benchmarks/backbones.py --log backbones.jsonl
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np
import timm
import torch

from nuswide.config import Config
from nuswide.deployment.export import write_bundle
from nuswide.evaluation.evaluate import Decision, torch_score
from nuswide.models.networks import TaggerNet, create_model
from nuswide.models.timm_networks import native_size_px
from nuswide.tagger import Tagger

LABELS = ["sky", "sea"]
SMALL_PX = 64
FAMILIES = """
vit_tiny_patch16_224 vit_small_patch14_dinov2 vit_small_patch16_dinov3 vit_base_patch16_siglip_224
eva02_tiny_patch14_224 beit_base_patch16_224 naflexvit_base_patch16_gap
deit_tiny_distilled_patch16_224 maxvit_nano_rw_256 swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 convnext_atto convnextv2_atto mobilenetv4_conv_small fastvit_t8
hiera_tiny_224 levit_128s pit_ti_224 twins_pcpvt_small volo_d1_224 mixer_s32_224 resmlp_12_224
gmlp_s16_224 efficientvit_b0 efficientvit_m0 inception_next_atto coat_lite_tiny coat_tiny
crossvit_tiny_240 efficientvim_m1 coatnet_pico_rw_224 cait_xxs24_224 xcit_nano_12_p16_224
tf_efficientnet_lite0 efficientnet_b0 regnety_002 mobilenetv3_small_050 resnetv2_18 hgnetv2_b0
mambaout_femto poolformer_s12 caformer_s18 edgenext_xx_small mobilevit_xxs mobilevitv2_050
efficientformer_l1 efficientformerv2_s0 repvit_m0_9 tiny_vit_5m_224 starnet_s1 ghostnet_100
fasternet_t0 pvt_v2_b0 mvitv2_tiny davit_tiny focalnet_tiny_srf gcvit_xxtiny nest_tiny_jx
convit_tiny tnt_s_patch16_224 vitamin_small_224 visformer_tiny sequencer2d_s samvit_base_patch16
nextvit_small hrnet_w18_small densenet121 dla34 vgg11 inception_v3 rexnet_100 lcnet_050 resnest14d
skresnet18 tresnet_m ese_vovnet19b_dw shvit_s1 swiftformer_xs rdnet_tiny lowformer_b0 eca_nfnet_l0
dpn68 xception41 selecsls42b convmixer_768_32 botnet26t_256 lambda_resnet26t halonet26t
""".split()


def try_family(name: str) -> dict[str, Any]:
    """Return how far a network comes, and the error that ends it."""
    row: dict[str, Any] = {"name": name, "module": timm.models.model_entrypoint(name).__module__}
    try:
        model, size_px = _build(name)
        row |= {"size_px": size_px, "way": model.backbone.way, "unused": len(model.backbone.unused)}
        row["parameters"] = sum(p.numel() for p in model.backbone.parameters())
        images = torch.randint(0, 256, (2, 3, size_px, size_px), dtype=torch.uint8)
        row["built"] = True
        _train_two_steps(model, images)
        row["trained"] = True
        row["difference"] = _exported_difference(model, images.numpy())
    except click.ClickException as error:
        row["error"] = error.message
    except Exception as error:  # the table states it
        row["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return row


def _build(name: str) -> tuple[TaggerNet, int]:
    """Build a network for small images, or for those that it was made for."""
    for size_px in (SMALL_PX, native_size_px(name)):
        config = Config(backbone=f"timm/{name}", weights="none", image_size_px=size_px)
        try:
            return create_model(config, n_labels=len(LABELS)), size_px
        except click.ClickException as error:
            refused = error
    raise refused


def _train_two_steps(model: TaggerNet, images: torch.Tensor) -> None:
    """Take two steps in which every trained parameter has a gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        logits = model(images / 255 - 0.5)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.eye(2))
        loss.backward()
        optimizer.step()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        if without or not torch.isfinite(loss):
            raise ValueError(f"loss {loss.item()}, without a gradient: {without[:3]}")


def _exported_difference(model: TaggerNet, images: np.ndarray) -> float:
    """Return the largest difference of a score between torch and ONNX Runtime."""
    decision = Decision(np.full(len(LABELS), 0.5, np.float32))
    settings = {"labels": LABELS, "image_size_px": images.shape[-1], "config": {}}
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(Path(folder) / "bundle", model, settings, decision, images)
        here = torch_score(model, torch.device("cpu"))(images)
        return float(np.abs(Tagger.load(Path(folder) / "bundle").score(images) - here).max())


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table of docs/backbones.md."""
    lines = [
        "| network | px | parameters | feature map from | trained | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["name"]):
        built, trained = row.get("built"), row.get("trained")
        size = f"{row['parameters'] / 1e6:.1f} M" if built else ""
        end = f"{row['difference']:.0e}" if "difference" in row else row["error"]
        way = f"`{row['way']}`" if built else ""
        lines.append(
            f"| `{row['name']}` | {row.get('size_px', '')} | {size} | {way} | "
            f"{'yes' if trained else 'no'} | {end.replace('|', '/')} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Try the families that are not in the log, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True, help="JSON Lines, extended")
    log = parser.parse_args().log
    warnings.filterwarnings("ignore")
    lines = log.read_text().splitlines() if log.exists() else []
    rows = {row["name"]: row for row in map(json.loads, lines)}
    for name in FAMILIES:
        if name not in rows:
            torch.manual_seed(0)
            rows[name] = try_family(name)
            with log.open("a") as file:
                file.write(json.dumps(rows[name]) + "\n")
    print(to_markdown([rows[name] for name in FAMILIES]))


if __name__ == "__main__":
    main()
