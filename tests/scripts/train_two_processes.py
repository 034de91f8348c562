"""As train_as_users_do.py, and every process writes its model's state to the folder $DUMP."""

import os

import fastreid_rib  # noqa: F401  arms the hook

# isort: split
import torch
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from fastreid.utils import comm


def main(args):
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    default_setup(cfg, args)
    trainer = DefaultTrainer(cfg)
    trainer.train()
    model = trainer.model.module
    state = {**model.state_dict(), **{f"rib.{k}": v for k, v in model.rib.state_dict().items()}}
    # Batch norm's running averages are each process's own: FastReID does not share them.
    state = {k: v for k, v in state.items() if "running_" not in k}
    torch.save(state, os.path.join(os.environ["DUMP"], f"rank{comm.get_rank()}.pth"))


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(main, args.num_gpus, dist_url="auto", args=(args,))
