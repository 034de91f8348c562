"""The command ``information``: the information plane of a run, checkpoint by checkpoint.

Legend: N training images, D dimensions, K clusters of embeddings, L of inputs; F~ and X~ the
clusters of an image's embedding and of its pixels, Y its identity.
"""

import glob
import os
import random
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from fastreid_rib.base.kept import evaluated
from fastreid_rib.base.safe_reads import read_checkpoint
from fastreid_rib.base.whole_files import written_whole
from fastreid_rib.commands import load_weights, read_config
from fastreid_rib.integration import config
from fastreid_rib.integration.rib.embedding import embedding_and_labels
from fastreid_rib.integration.training_set import in_batches, training_pictures
from fastreid_rib.losses.clustering import kmeans, spread_seeds
from fastreid_rib.losses.refresh import center_rows, refresh
from fastreid_rib.losses.table import Rows
from fastreid_rib.ops.assignment import soft_assignment
from fastreid_rib.ops.sums import chunks, mutual_information
from fastreid_rib.settings.rib import RIBSettings

PIXEL_GRID = (8, 4)
"""Rows and columns to which an image is average-pooled."""

COLUMNS = ("I(F~;X~)", "I(F~;Y)", "IB", "KLB", "bound")


def main(folder: str, config_file: Optional[str], opts: List[str]) -> None:
    """Prints the table of a run, writes ``information.png`` beside its checkpoints."""
    changes = [*opts, "MODEL.BACKBONE.PRETRAIN", False, "DATALOADER.NUM_WORKERS", 0]
    plane = planes(read_config(config_file or os.path.join(folder, "config.yaml"), changes), folder)
    path = os.path.join(folder, "information.png")
    draw(plane, path)
    rows = [(epoch, *of.values()) for epoch, of in plane.items()]
    print(tabulate(rows, ("epoch", *COLUMNS), "pipe", floatfmt=".4f"))
    print(f"\nIn nats, of the training images in evaluation mode; drawn in {path}")


def planes(cfg: Any, folder: str) -> Dict[int, Dict[str, float]]:
    """The measures of a run by epoch, in nats: see :func:`measures`.

    Raises:
        ValueError: the folder holds no checkpoint with its epoch, or one of another network.
    """
    from fastreid.modeling import build_model

    data = training_pictures(cfg)
    cfg.MODEL.HEADS.NUM_CLASSES = data.num_classes
    model, found = build_model(cfg), {}
    settings = config.rib_settings(cfg).of_identities(data.num_classes)
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "model_*.pth"))):
        checkpoint = read_checkpoint(path)
        epoch = checkpoint.get("epoch")
        if epoch is None or int(epoch) in found:  # model_final is the last epoch once more
            continue
        load_weights(model, checkpoint["model"], path)
        found[int(epoch)] = measures(*embed(model, data, cfg), settings)
    if not found:
        raise ValueError(f"{folder} has no model_*.pth with its epoch, as FastReID writes them")
    return dict(sorted(found.items()))


def embed(model: Any, data: Any, cfg: Any) -> Tuple[Rows, Tensor]:
    """What RIB would be given of a data set, but in evaluation mode; grids of pixels (N, 96)."""
    parts: List[Sequence[Tensor]] = []

    def losses(*args: Any) -> Dict[str, Tensor]:
        given = embedding_and_labels(args)
        if given is None:
            raise ValueError(f"{type(model).__name__} gives no embedding that RIB could take")
        pixels = F.adaptive_avg_pool2d(images, PIXEL_GRID).flatten(1).cpu()
        parts.append((given[0].detach().float().cpu(), given[1].cpu(), pixels))
        return {"loss_rib": torch.zeros(())}

    model.losses = losses  # in place of its own, for as long as it lives: it is ours
    model.rib = None  # which would follow the epochs of a training
    with evaluated(model):
        for part in model.modules():  # batch normalisation and dropout as in evaluation,
            part.training = part is model or hasattr(part, "pool_layer")  # outputs as in training
        for batch in in_batches(data, cfg):
            images = batch["images"].clone()  # FastReID normalises what it is given in place
            with torch.enable_grad():  # hooks for RIB look whether this is a training
                model(batch)
    embeddings, labels, pixels = (torch.cat(column) for column in zip(*parts))
    return Rows(embeddings, labels, None), pixels


def measures(rows: Rows, pixels: Tensor, settings: RIBSettings) -> Dict[str, float]:
    """I(F~;X~), I(F~;Y), their difference IB, KLB and the bound of the loss, in nats.

    The embeddings are clustered as in a first refresh, without cameras: the bound then is one of
    I(F~;Y). So are the grids of pixels, each with its mean subtracted, L2-normalised.
    """
    rows = rows._replace(embeddings=F.normalize(rows.embeddings, dim=1))
    draws = random.Random(settings.seed)
    statistics, report = refresh(rows, None, settings, int(rows.labels.max()) + 1, draws)
    pixels = F.normalize(pixels - pixels.mean(dim=1, keepdim=True), dim=1)
    start = spread_seeds(pixels, settings.num_clusters, draws)
    of_pixels = kmeans(pixels, start, settings.kmeans_iterations)
    mean = statistics.mean
    features = rows.embeddings if mean is None else center_rows(rows.embeddings, mean)
    joint = torch.zeros(len(statistics.centroids), len(of_pixels), dtype=torch.float64)
    for part in chunks(len(features), settings.num_clusters):
        phi = soft_assignment(features[part], statistics.centroids, settings.beta)
        joint += phi.double().t() @ soft_assignment(pixels[part], of_pixels, settings.beta).double()
    kept, told = float(mutual_information(joint)), report["mutual_information"]
    return dict(zip(COLUMNS, (kept, told, kept - told, report["klb"], report["bound"])))


def draw(plane: Dict[int, Dict[str, float]], path: str) -> None:
    """Draws the plane, and the bounds by epoch, into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    epochs, (left, right) = list(plane), figure.subplots(1, 2)
    column = {name: [of[name] for of in plane.values()] for name in COLUMNS}
    left.plot(column["I(F~;X~)"], column["I(F~;Y)"], color="0.7", zorder=1)
    dots = left.scatter(column["I(F~;X~)"], column["I(F~;Y)"], c=epochs, zorder=2)
    figure.colorbar(dots, ax=left, label="epoch")
    left.set(xlabel="I(F~;X~), nats", ylabel="I(F~;Y), nats", title="Information plane")
    for name in ("IB", "KLB", "bound"):
        right.plot(epochs, column[name], marker="o", label=name)
    right.set(xlabel="epoch", ylabel="nats", title="Information bottleneck and its bounds")
    right.legend()
    with written_whole(path, "wb") as file:
        FigureCanvasAgg(figure).print_png(file)
