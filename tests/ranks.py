"What each of several processes does in a test; `zygote.run(\"ranks\", N, FUNCTION, ...)` starts them. Imported there only, where torch is loaded and nothing was computed yet."

import json
import os
import signal
from pathlib import Path

import torch

from hglmm import recipes
from hglmm.datasets import layout
from hglmm.datasets.core import Subset
from hglmm.heads import loading
from hglmm.lmm.frozen import FrozenLMM
from hglmm.paths import shipped
from hglmm.runs import launch, training, training_data, validation
from hglmm.runs.trainer import Trainer


def train(*words: str) -> None:
    "The program itself. FAULT=rank:step:signal sends a process a signal in the midst of a step."
    torch.set_num_threads(int(os.environ.get("THREADS", 1)))
    if "FAULT" in os.environ:
        rank, step, number = map(int, os.environ["FAULT"].split(":"))
        measure = Trainer.portion_loss

        def faulty(self, samples):
            if (launch.rank(), self.step) == (rank, step):
                signal.raise_signal(number)
            return measure(self, samples)

        Trainer.portion_loss = faulty
    training.main(list(words))


class Counted(Subset):
    "Samples that say how many phrases they have."

    def count_phrases(self, i: int) -> int:
        return len(self[i].masks)


def first_steps(world: str, folder: str, steps: str) -> None:
    "Some steps of four pictures, without dropout and clipping, on as many processes as there are; heads and gradients are put down."
    torch.set_num_threads(1)
    launch.join(torch.device("cpu"))
    recipe = recipes.replace("toy_llava", schedule__clip=1e6)
    data = Counted(layout.TrainingSet.open(world, ("png",)), range(12))
    run = training.Run(recipe, int(steps), seed=1, batch_size=1, lr=1e-3, log_every=1, save_every=9, global_batch=4)
    trainer = Trainer(run, FrozenLMM.load("toy_llava", device="cpu"), data, Path(folder))
    for module in trainer.head.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    step, found = trainer.optimizer.step, []
    trainer.optimizer.step = lambda: found.append([one.grad.clone() for one in trainer.trained]) or step()
    if os.environ.get("PHRASELESS"):  # the last process's pictures have none
        shares, last = training.shares, launch.rank() == launch.size() - 1
        training.shares = lambda *told: (bare(share) if last else share for share in shares(*told))
    trainer.fit()
    torch.save({"gradients": found, "head": trainer.head.state_dict(), "losses": training.read_log(folder)}, Path(folder) / f"rank{launch.rank()}.pt")
    launch.leave()


def bare(share: training_data.Share) -> training_data.Share:
    "The same pictures with nothing said about them."
    for sample in share.samples:
        sample.pieces, sample.masks = [("A picture.", None)], sample.masks[:0]
    return share


def other_data(world: str) -> None:
    "The second process has another training set."
    torch.set_num_threads(1)
    launch.join(torch.device("cpu"))
    data = Subset(layout.TrainingSet.open(world, ("png",)), range(8 + launch.rank()))
    Trainer(training.Run("toy_llava", 1, batch_size=1), FrozenLMM.load("toy_llava", device="cpu"), data, Path("nowhere")).begin()


def look(world: str, other: str, folder: str) -> None:
    "A look at what is held out, before anything is learnt; then one in which the second process is asked to end."
    torch.set_num_threads(1)
    launch.join(torch.device("cpu"))
    names = ("refcoco", "png")
    run = training.Run("toy_llava", 4, seed=3, batch_size=2, global_batch=3, lr=1e-3, validate_every=2, validate_pictures=2, benchmarks=names)
    left = validation.hold_out(other if launch.rank() == 1 else world, run)
    trainer = Trainer(run, FrozenLMM.load("toy_llava", device="cpu"), layout.TrainingSet.open(world, names), Path(folder) / "run", held_out=validation.hold_out(world, run))
    trainer.head.load_state_dict(loading.load_head(shipped("checkpoints/toy_head")).state_dict())
    trainer.folder.mkdir(parents=True, exist_ok=True)
    own, told = trainer.look(), []
    trainer.step = 2
    trainer.validate(type("Diary", (), {"tell": staticmethod(lambda line, values, pictures: told.append(line))}))
    trainer.step, trainer.stopping.asked = 4, 15 * (launch.rank() == 1)
    trainer.validate(None)
    found = {"own": [list(place) for place in own.rows], "told": told, "left": [part.title for part in left], "stopped": trainer.stop}
    (Path(folder) / f"{launch.rank()}.json").write_text(json.dumps(found))
    launch.leave()
