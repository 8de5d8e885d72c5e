"""How a run's options compare with the paper's: what was chosen on the test set, and what differs."""

from __future__ import annotations

from rift.config import Config


def selection_notes(config: Config) -> list[str]:
    """Which choices are made on the test set, and so flatter the numbers; one sentence in a list."""
    stage = config.stage
    chosen = {
        "the AT epoch": stage.at.selection_split if stage.at.select == "best" else "none",
        "the fine-tuning epoch": stage.finetune.selection_split
        if stage.finetune.select == "best"
        else "none",
        "α*": stage.interpolate.selection_split,
        "the module": stage.mrc.split,
    }
    on_test = [what for what, split in chosen.items() if split == "test"]
    if not on_test:
        return ["no choice is made on the test set"]
    listing = ", ".join(on_test[:-1]) + (" and " if len(on_test) > 1 else "") + on_test[-1]
    return [f"selected on the test set: {listing}; protocol=holdout selects nothing there"]


def differences(config: Config) -> list[str]:
    """How the options differ from the paper's text (Sec. 3.3 and 5.1), one sentence each."""
    at, mrc, finetune = config.stage.at, config.stage.mrc, config.stage.finetune
    attack, data = config.attack, config.dataset
    threat = (attack.norm, attack.epsilon, attack.step_size, attack.steps, attack.random_start)
    schedule = (at.optimizer, at.schedule, at.lr, list(at.milestones), at.decay_rate)
    selection = {at.selection_split, finetune.selection_split, config.stage.interpolate.selection_split}
    limits = f"{data.train_limit or 'all'} training and {data.test_limit or 'all'} test images"
    checks = [
        (
            threat == ("linf", "8/255", "2/255", 10, True),
            f"attack {attack.name}: {attack.norm}, epsilon {attack.epsilon}, step {attack.step_size}, "
            f"{attack.steps} steps",
        ),
        (
            config.evaluation_attack.steps == 10,
            f"evaluated with {config.evaluation_attack.steps} attack steps, not 10",
        ),
        (config.model.checkpoint is None, "weights from a checkpoint"),
        (at.epochs == 110, f"AT for {at.epochs} epochs, not 110"),
        (at.batch_size == 128, f"AT in batches of {at.batch_size}, not 128"),
        (
            schedule == ("momentum", "multistep", 0.1, [100, 105], 0.1),
            f"AT schedule: {at.optimizer}, {at.schedule}, lr {at.lr}, milestones {list(at.milestones)}",
        ),
        (
            at.evaluate_every == 1,
            f"the best AT epoch is sought every {at.evaluate_every} epochs and in the last tenth",
        ),
        (mrc.split == "train", f"MRC scan on the {mrc.split} split"),
        (mrc.max_images is None, f"MRC scan on {mrc.max_images} images"),
        (mrc.solver == "sgd", f"MRC solver: {mrc.solver}"),
        (
            (mrc.on_violation, mrc.score) == ("stop", "last"),
            f"MRC scan: {mrc.on_violation} after leaving the ball, the {mrc.score} epoch counts",
        ),
        (finetune.batchnorm == "frozen", f"BatchNorm statistics while fine-tuning: {finetune.batchnorm}"),
        (finetune.target == "least_critical", f"fine-tuned: {finetune.target}"),
        (
            (finetune.lr, finetune.epochs) == (0.001, 10),
            f"fine-tuning with lr {finetune.lr} for {finetune.epochs} epochs",
        ),
        (
            config.stage.evaluate.restarts == 3,
            f"robust accuracy from {config.stage.evaluate.restarts} PGD run(s), not 3",
        ),
        (limits.count("all") == 2, limits),
        (selection == {"test"}, f"selection on: {', '.join(sorted(selection))}"),
    ]
    return [sentence for as_in_paper, sentence in checks if not as_in_paper]
