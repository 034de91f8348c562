"""Trains or evaluates a FastReID config, with FastReID's own arguments.

For those whose FastReID came from a package index, which brings no tools; with a checkout of
FastReID, its own ``tools/train_net.py`` does the same::

    python tools/train_net.py --config-file configs/Market1501/rib_bot_R50.yml --num-gpus 1
    python tools/train_net.py --config-file FILE --eval-only MODEL.WEIGHTS model_best.pth
"""

import fastreid_rib  # noqa: F401  before FastReID, also where the .pth file is not installed

# isort: split
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from fastreid.utils.checkpoint import Checkpointer


def main(args):
    """Runs on every process that ``launch`` starts, and returns the metrics of the evaluation."""
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if args.eval_only:
        cfg.MODEL.BACKBONE.PRETRAIN = False  # the checkpoint has all weights
    cfg.freeze()
    default_setup(cfg, args)

    if args.eval_only:
        model = DefaultTrainer.build_model(cfg)
        Checkpointer(model).load(cfg.MODEL.WEIGHTS)
        return DefaultTrainer.test(cfg, model)

    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
