"""A search on two CPU processes: prints what each of them has chosen, every bit of it."""

import sys

import fastreid_rib  # noqa: F401  arms the hook, in the spawned processes too

# isort: split
import torch
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer, launch
from fastreid.utils import comm


class Trainer(DefaultTrainer):
    def after_step(self):
        super().after_step()
        search = self.model.module.search
        self.drawn.append([choice.gates.tolist() for choice in search.choices.values()])


def main(config):
    torch.set_num_threads(1)
    cfg = get_cfg()
    cfg.merge_from_file(config)
    trainer = Trainer(cfg)
    trainer.drawn = []
    trainer.train()
    search = trainer.model.module.search
    logits = {name: value.tolist() for name, value in search.named_parameters()}
    for rank, said in enumerate(comm.all_gather((logits, search.derive(), trainer.drawn))):
        if comm.is_main_process():
            print(f"rank {rank}: {said}", flush=True)


if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(sys.argv[1],))
