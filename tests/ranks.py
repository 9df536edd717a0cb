"What each of several processes does in a test; `zygote.run(\"ranks\", N, FUNCTION, ...)` starts them. Imported there only, where torch is loaded and nothing was computed yet."

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_lmms import small_lmm, tiny_deepseek

from hglmm import recipes
from hglmm.datasets import layout
from hglmm.datasets.core import Sample, Subset
from hglmm.errors import SettingError
from hglmm.heads import loading
from hglmm.lmm import sharding
from hglmm.lmm.frozen import FrozenLMM
from hglmm.lmm.taps import TextTap
from hglmm.paths import shipped
from hglmm.runs import launch, training, training_data, training_plan, validation
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
# --- an LMM that two processes share


def said_about(draw: np.random.Generator, phrases: int, pictures: int = 1) -> list[Sample]:
    "Pictures of noise and so many phrases about each."
    pieces = [("A picture. ", None), *((f"the red mug number {k} ", k) for k in range(phrases))]
    return [Sample(Image.fromarray(draw.integers(0, 255, (60, 90, 3), dtype=np.uint8)), pieces, np.ones((phrases, 60, 90), bool)) for _ in range(pictures)]


def same_features(lmm: FrozenLMM, plain: FrozenLMM, samples: list[Sample]) -> bool:
    "Does an LMM read the same as another one, to the bit?"
    ours, theirs = lmm.encode(samples), plain.encode(samples)
    return all(torch.equal(getattr(a, name), getattr(b, name)) for a, b in zip(ours, theirs, strict=True) for name in ("attention", "text", "levels", "pixels")) and all(a.tiles is None if b.tiles is None else torch.equal(a.tiles, b.tiles) for a, b in zip(ours, theirs, strict=True))


def reads_alike(lmm: FrozenLMM, plain: FrozenLMM) -> dict[str, bool]:
    "What two processes read together, which do not go the same way."
    draw, first = np.random.default_rng(launch.rank()), launch.rank() == 0
    found = {"batches": same_features(lmm, plain, said_about(draw, 3 if first else 1, 2 if first else 1))}
    found["no phrase in one"] = same_features(lmm, plain, said_about(draw, 0 if first else 2))
    found["no phrase in the other"] = same_features(lmm, plain, said_about(draw, 2 if first else 0))
    found["one more"] = not first or same_features(lmm, plain, said_about(draw, 1))
    sharding.meet(lmm)
    picture, most = said_about(draw, 0)[0].image, 9 if first else 4
    ours, theirs = (one.answer(picture, "What is in the image?", max_new_tokens=most) for one in (lmm, plain))
    found["answers"] = ours == theirs and len(ours.tokens) == most
    if not first:  # while the other one still speaks
        features = [one.encode_answer(answer, [(0, len(answer.text))]) for one, answer in ((lmm, ours), (plain, theirs))]
        found["words"] = torch.equal(features[0].attention, features[1].attention) and torch.equal(features[0].text, features[1].text)
    sharding.meet(lmm)
    return found


def fails_and_goes_on(lmm: FrozenLMM, plain: FrozenLMM) -> bool:
    "An error in one process, in the midst of its pass through the decoder."
    samples = said_about(np.random.default_rng(5), 2)
    read = TextTap._read
    if launch.rank():
        TextTap._read = None
        with pytest.raises(TypeError):
            lmm.encode(samples)
        TextTap._read = read
    good = same_features(lmm, plain, samples)
    sharding.meet(lmm)
    return good


def refused(lmm: FrozenLMM) -> list[str]:
    "What cannot be shared out."
    said = []
    for one in (lmm, FrozenLMM.load("toy_llava", device_map={"": "cpu"})):
        with pytest.raises(SettingError) as error:
            sharding.shard(one, torch.device("cpu"))
        said.append(str(error.value))
    return said


def shared(world: str, folder: str) -> None:
    "Two processes share LMMs, and train a head with one."
    torch.set_num_threads(1)
    shares, last = training.shares, launch.own_rank()[0] == 1
    training.shares = lambda *told: (bare(share) if last and share.end == 6 else share for share in shares(*told))  # no phrase in the second step
    leave, launch.leave = launch.leave, lambda: None
    words = ["-p", "name", "shared", "-p", "data", world, "-p", "benchmarks", ["png"], "-p", "device", "cpu", "-p", "batch_size", 1, "-p", "global_batch", 3, "-p", "max_steps", 3]
    words += ["-p", "validate_every", 3, "-p", "validate_pictures", 3]  # one of them has a picture less to look at
    training.main([*map(str, words), "-p", "shard_lmm", "True"])
    found = {"rank": launch.rank()}

    plain, lmm = FrozenLMM.load("toy_llava", device="cpu"), sharding.load("toy_llava")
    whole = sharding.own_bytes(plain.model)
    found["before"] = sharding.own_bytes(lmm.model) / whole
    found["toy_llava"], found["error"] = reads_alike(lmm, plain), fails_and_goes_on(lmm, plain)
    found["after"], found["lent"] = sharding.own_bytes(lmm.model) / whole, lmm.sharded.lent
    found["alike"], found["refused"] = training_plan.of_lmm(lmm) == training_plan.of_lmm(plain), refused(lmm)

    own = Path(folder) / f"lmm{launch.rank()}"
    own.mkdir()
    plain = tiny_deepseek(own, pytest.MonkeyPatch(), hybrid=True)
    found["hybrid"] = reads_alike(sharding.load(plain.recipe, own / "lmm"), plain)
    plain = small_lmm("llava_next", own, pytest.MonkeyPatch())
    found["llava_next"] = reads_alike(sharding.load(plain.recipe, own / "llava_next"), plain)

    settings = training_plan.asked({**training_plan.read_words([*map(str, words)]), "name": "whole"})
    data = training.open_data(world, settings.benchmarks)
    head = training.open_trainer(settings, training_plan.plan(settings, len(data), 2), data, world).fit()
    found["head"] = head.state_dict()
    torch.save(found, Path(folder) / f"rank{launch.rank()}.pt")
    leave()
