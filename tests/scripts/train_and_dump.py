"""Trains, and every process writes its model's state to the folder $DUMP.

It seeds by hand, since the key SEED belongs to the plugin, which is switched off in one of the runs
that tests compare.
"""

import os

import fastreid_rib  # noqa: F401  arms the hook

# isort: split
import torch
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng


def main(args):
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list([*args.opts, "SOLVER.MAX_EPOCH", "2", "TEST.EVAL_PERIOD", "2"])
    default_setup(cfg, args)
    seed_all_rng(3)
    trainer = DefaultTrainer(cfg)
    trainer.train()
    model = getattr(trainer.model, "module", trainer.model)
    state = dict(model.state_dict())
    if hasattr(model, "rib"):
        state.update((f"rib.{key}", value) for key, value in model.rib.state_dict().items())
    if comm.get_world_size() > 1:  # whose averages in batch norm are each process's own
        state = {key: value for key, value in state.items() if "running_" not in key}
    torch.save(state, os.path.join(os.environ["DUMP"], f"rank{comm.get_rank()}.pth"))


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(main, args.num_gpus, dist_url="auto", args=(args,))
