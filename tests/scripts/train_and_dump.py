"""Trains one epoch from a seed of its own and writes the weights to $DUMP.

It seeds by hand, since the key SEED belongs to the plugin, which is switched off in one of the two
runs that a test compares.
"""

import os

import fastreid_rib  # noqa: F401  arms the hook

# isort: split
import torch
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup
from fastreid.utils.env import seed_all_rng

if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list([*args.opts, "SOLVER.MAX_EPOCH", "2", "TEST.EVAL_PERIOD", "2"])
    default_setup(cfg, args)
    seed_all_rng(3)
    trainer = DefaultTrainer(cfg)
    trainer.train()
    torch.save(trainer.model.state_dict(), os.environ["DUMP"])
