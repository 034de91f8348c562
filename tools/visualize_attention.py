"""Pictures of where models look, and of what they find: a PNG and one self-contained HTML file.

A row is what one model makes of one image: the image, Grad-CAM (MGN: of each branch; ViT: on the
patches, and the attention of the class token), for DCS the attention that each position receives
and the share of channels kept there, and the nearest pictures of the gallery, right ones marked
with a tick and green, wrong ones with a cross and red. Without --images the images are queries of
the config's data set, evenly over the whole. Several models stand in rows one under the other::

    python tools/visualize_attention.py --output logs/pictures \\
        --config-file configs/quickstart/baseline.yml --weights logs/baseline/model_final.pth \\
        --config-file configs/quickstart/rib.yml --weights logs/rib/model_final.pth
    python tools/visualize_attention.py --config-file FILE --weights stock_model.pth \\
        --images one.jpg folder --top-k 0

A model is evaluated as FastReID does it, without flips, query expansion and re-ranking. A CPU will
do; embedding a large gallery takes its time there, and --top-k 0 leaves it out.
"""

import argparse
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple

import fastreid_rib  # noqa: F401  before FastReID, also where the .pth file is not installed

# isort: split
import torch
from tqdm import tqdm
from visualize import InputError, page, ranking
from visualize.maps import explain
from visualize.models import load_config, load_model

BATCH = 8  # images explained at a time: the gradients of R50 at 256x128 take 60 MB an image

LEGEND = (
    "Grad-CAM: positions that make the embedding long, from none (blue) to the image's most (red). "
    "Attention: how much of a position goes into the others. Channels kept: the share of channels "
    "that DCS's mask lets take part, from 0 (dark) to 1 (yellow), with its mean. Gallery: nearest "
    "first, with identity and distance; right (\u2713, green), wrong (\u2717, red), or not known "
    "(grey). Pictures of the query's identity from its own camera are left out."
)


def main(arguments=None):
    """Runs the command line; what cannot be done ends it with a message and exit status 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", action="append", required=True, metavar="FILE", help="once a model")
    add("--weights", action="append", default=[], metavar="FILE", help="once a model, in order")
    add("--name", action="append", default=[], help="once a model; else the config file's")
    add("--images", nargs="+", metavar="PATH", help="files or folders, instead of queries")
    add("--dataset", help="query and gallery, else the config's DATASETS.TESTS")
    add("--count", type=int, default=8, help="how many queries (8)")
    add("--top-k", type=int, default=5, help="how much of the ranked gallery; 0: none (5)")
    add("--output", default="logs/attention/pictures", help="writes OUTPUT.png and OUTPUT.html")
    add("--device", default="", help="cpu or cuda; else MODEL.DEVICE, or the CPU if it is not here")
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help="override keys of every config")
    args = parser.parse_args(arguments)
    models = len(args.config_file)
    if len(args.weights) not in (0, models) or len(args.name) not in (0, models):
        parser.error(
            f"{models} --config-file, {len(args.weights)} --weights and {len(args.name)} --name: "
            "give as many of each (no --weights: MODEL.WEIGHTS of the configs; no --name: the "
            "files' names)"
        )
    if args.count < 1 or args.top_k < 0 or len(args.opts) % 2:
        parser.error("--count is to be >= 1, --top-k >= 0, and --opts keys and values in turn")
    try:
        draw(args)
    except InputError as error:
        sys.exit(f"visualize_attention: {error}")


def draw(args):
    """Does what the parsed command line says.

    Raises:
        InputError: something that was given cannot be used.
    """
    configs = [load_config(path, args.device, args.opts) for path in args.config_file]
    names = args.name or distinct_names(args.config_file)
    weights = args.weights or [cfg.MODEL.WEIGHTS for cfg in configs]
    models = [load_model(*given) for given in zip(names, configs, weights)]

    queries, gallery = [], []
    if args.top_k or not args.images:
        queries, gallery = ranking.load_dataset(args.dataset or shared_dataset(configs), configs[0])
    if args.images:
        shots = ranking.find_images(args.images, queries + gallery)
    else:
        shots = ranking.spread(queries, args.count)

    results = [look(model, shots, gallery if args.top_k else [], args.top_k) for model in models]
    # Models have different maps; their galleries start in one column nevertheless.
    widest = max(len(seen.maps[0]) for seen in results)
    rows = []
    for image in range(len(shots)):
        for name, seen in zip(names, results):
            gap = [None] * (widest - len(seen.maps[image]))
            cells = seen.maps[image] + gap + seen.ranked[image]
            rows.append(page.Row(name, cells, first=seen is results[0]))
    table = [("model", "place of DCS", "mean share of channels kept")]
    for name, seen in zip(names, results):
        table += [(name, place, f"{share:.3f}") for place, share in seen.kept.items()]

    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    files = [output.with_name(output.name + ending) for ending in (".png", ".html")]
    page.write_png(files[0], rows)
    title = f"Where {', '.join(names)} {'look' if len(names) > 1 else 'looks'}"
    page.write_html(files[1], title, LEGEND, rows, table if len(table) > 1 else ())
    for line in table if len(table) > 1 else ():
        print("  ".join(f"{text:24}" for text in line).rstrip())
    print("\n".join(map(str, files)))


class Seen(NamedTuple):
    """What one model makes of some images.

    Attributes:
        maps: for each image, the cells of the image itself and of the maps over it.
        ranked: for each image, the cells of the nearest pictures of the gallery.
        kept: the mean share of channels that DCS keeps, by place; empty without DCS.
    """

    maps: List[List[page.Cell]]
    ranked: List[List[page.Cell]]
    kept: Dict[str, float]


def look(model, shots, gallery, top_k):
    """Lets one model look at some images.

    Args:
        model: a :class:`visualize.models.Model`.
        shots: the images, as :class:`visualize.ranking.Shot`.
        gallery: shots to rank; empty for none.
        top_k: how many of them to show.

    Returns:
        A :class:`Seen`.
    """
    images = ranking.load_images(model.cfg, shots)
    titles = [Path(s.path).name if s.pid is None else f"identity {s.name}" for s in shots]
    explanations = [
        explain(model.network, batch.to(model.cfg.MODEL.DEVICE))
        for batch in tqdm(images.split(BATCH), desc=f"{model.name}: images", unit="batch")
    ]
    ranked = [[] for _ in shots]
    if gallery:
        queries = torch.cat([explained.embeddings for explained in explanations])
        rows = ranking.distances(model.cfg, queries, ranking.embed(model, gallery))
        for i, (shot, row) in enumerate(zip(shots, rows)):
            nearest, first = ranking.rank(shot, row, gallery, top_k)
            ranked[i] = gallery_cells(model.cfg, nearest)
            titles[i] += f"\nfirst right: {first}" if first else ""
    maps = [
        map_cells(image, title, explanations[i // BATCH].maps, i % BATCH)
        for i, (image, title) in enumerate(zip(images, titles))
    ]
    kept = {
        place: sum(e.kept[place] * len(e.embeddings) for e in explanations) / len(shots)
        for place in explanations[0].kept
    }
    return Seen(maps, ranked, kept)


def map_cells(image, title, maps, index):
    """The image itself, and each map over it.

    Args:
        image: (3, H, W), 0..255.
        title: of the image.
        maps: of the batch that the image is in.
        index: its number in the batch.
    """
    drawn = page.picture(image)
    cells = [page.Cell(drawn, title)]
    for shown in maps:
        values = shown.values[index]
        mean = float(values.mean())
        # Colours end at the peak, so an even map would look as hot as one with a peak.
        number = (
            f"{mean:.2f}" if shown.share else f"peak {float(values.max()) / (mean or 1):.1f} x mean"
        )
        drawn_over = page.overlay(drawn, values, shown.share)
        cells.append(page.Cell(drawn_over, f"{shown.title}\n{number}"))
    return cells


def gallery_cells(cfg, nearest):
    """The nearest pictures of the gallery with their marks.

    Args:
        cfg: whose INPUT.SIZE_TEST they are shown in.
        nearest: a list of :class:`visualize.ranking.Ranked`, at least one.
    """
    images = ranking.load_images(cfg, [item.shot for item in nearest])
    return [
        page.Cell(page.picture(image), f"{item.shot.name}  {item.distance:.3f}", True, item.right)
        for item, image in zip(nearest, images)
    ]


def shared_dataset(configs):
    """The first data set that the configs test on, which is to be the same.

    Raises:
        InputError: there is none, or not one for all.
    """
    names = {cfg.DATASETS.TESTS[0] if cfg.DATASETS.TESTS else "" for cfg in configs}
    if len(names) > 1 or "" in names:
        raise InputError(
            f"The configs test on {', '.join(sorted(names - {''})) or 'no data set'}: name the one "
            "whose queries and gallery are to be shown by --dataset."
        )
    return names.pop()


def distinct_names(paths):
    """The names of config files, with as many folders as tell them apart."""
    parts = [Path(path).with_suffix("").parts for path in paths]
    depth = 1
    while len({p[-depth:] for p in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


if __name__ == "__main__":
    main()
