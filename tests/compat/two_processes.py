"""FastReID's launch with two CPU processes: they train and evaluate, then one of them fails."""

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from small_run import small_cfg

# isort: split
import torch
from fastreid.engine import DefaultTrainer, launch
from fastreid.utils import comm


class Trainer(DefaultTrainer):
    may_fail = False

    def run_step(self):
        if self.may_fail and comm.get_rank() == 1:
            raise RuntimeError("rank 1 cannot go on")
        super().run_step()


def main(folder):
    torch.set_num_threads(1)
    cfg = small_cfg(os.path.join(folder, "logs"), {"TEST.EVAL_PERIOD": 2})  # after the last epoch
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    trainer = Trainer(cfg)
    model = trainer.model.module
    before = [p.detach().clone() for p in model.parameters()]
    results = trainer.train()
    if comm.is_main_process():
        print(results)
    torch.save(
        {
            "moved": sum(float((p - q).abs().sum()) for p, q in zip(model.parameters(), before)),
            "weights": [float(p.double().sum()) for p in model.parameters()],
            "images": next(trainer._trainer._data_loader_iter)["img_paths"],
        },
        os.path.join(folder, f"rank{comm.get_rank()}.pt"),
    )

    trainer = Trainer(cfg)
    trainer.may_fail = True
    trainer.train()


if __name__ == "__main__":
    try:
        launch(main, 2, dist_url="auto", args=(sys.argv[1],))
    except Exception as error:
        print("launch raised:", str(error).strip().splitlines()[-1].split("RuntimeError: ")[-1])
