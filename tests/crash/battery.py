"""One seed of the battery: histories that follow one another, each begun with what a power failure left of the last."""

from __future__ import annotations

import random
from dataclasses import replace

from snapd.units import KIB
from tests.crash.history import Image, Shape, first_truth, fresh, open_rig, record
from tests.crash.oracle import INVALID, Figures, Trial
from tests.crash.recorder import Recorder

LIMIT = 12  # sectors, or writes, whose subsets are tried one and all
SAMPLES = 24
KEEP = 6  # images of each history that whole hosts recover, and the kernel may get
HISTORIES_OF_A_SAMPLE = 2

SMALL = Shape()
"""Areas of two sectors with 32 entries each: few sectors are in doubt at a time, so that all subsets can be tried."""
SHAPES = (
    SMALL,
    SMALL,
    replace(SMALL, buffers=12),  # long batches: more of them tear
    Shape(origin=70, cow=90, chunk=4 * KIB, buffers=4),
    Shape(origin=70, cow=90, chunk=4 * KIB, buffers=4, logical_block=4 * KIB),
)


def battery(seed: int, histories: int, requests: int, keep: int = KEEP) -> tuple[Figures, list[tuple[Shape, Image]]]:
    """Run one seed; return its figures and a sample of the images, ``keep`` of each history and as many torn ones."""
    rng = random.Random(seed)
    shape = SHAPES[seed % len(SHAPES)]
    figures, sample = Figures(), []
    image = fresh(shape, rng)
    for number in range(histories):
        history = record(shape, image, 1 + (seed + number) % 2, 1000 * seed + number, requests)
        trial = Trial(history, seed, LIMIT, SAMPLES, keep)
        trial.run()
        figures.add(trial.figures)
        for kept in trial.kept:
            recover(shape, kept, figures)
        sample += [(shape, kept) for kept in (*trial.kept, *trial.torn)]
        image = rng.choice([each for each in trial.torn or trial.kept if each.count != INVALID])
    return figures, sample


def recover(shape: Shape, image: Image, figures: Figures) -> None:
    """Two whole hosts find the image: both show the snapshot, also while they go on writing."""
    truth = first_truth(shape)
    rig = open_rig(shape, Recorder(), image, hosts=2, seed=image.count)
    rig.run()
    if image.count == INVALID:
        return
    for host in rig.hosts:
        assert rig.read_all(host, "snapshot/s1") == truth, "a recovered host shows another snapshot"
    if rig.hosts[0].volume.stack[0].store is not None:
        for old in range(0, shape.origin, 9):
            rig.write(rig.hosts[old % 2], "origin", old * shape.chunk, b"\xfe" * shape.chunk)
    for host in rig.hosts:
        assert rig.read_all(host, "snapshot/s1") == truth, "the snapshot changed after a recovery"
    figures.volumes += 1
