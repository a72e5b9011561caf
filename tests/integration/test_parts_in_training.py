"""Parts of a model under fairseq's own trainer: their learning rates, and when they train."""

import math

import pytest
import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer

import fairseq_samu  # noqa: F401  (registers everything)

NO_DROPOUT = [
    "--encoder-dropout", "0", "--encoder-attention-dropout", "0", "--encoder-activation-dropout", "0",
    "--encoder-layerdrop", "0", "--mask-prob", "0", "--mask-channel-prob", "0",
    "--decoder-dropout", "0", "--decoder-attention-dropout", "0", "--decoder-activation-dropout", "0",
]  # fmt: skip
SCHEDULES = {
    "inverse_sqrt": (
        ["--warmup-updates", "2"],
        [0, 0.005, 0.01, 0.01 * math.sqrt(2 / 3), 0.01 * math.sqrt(2 / 4), 0.01 * math.sqrt(2 / 5)],
    ),
    "polynomial_decay": (
        ["--warmup-updates", "2", "--total-num-update", "6"],
        [0, 0.005, 0.01, 0.0075, 0.005, 0.0025],
    ),
    "tri_stage": (
        ["--warmup-steps", "2", "--hold-steps", "2", "--decay-steps", "2", "--init-lr-scale", "0.1",
         "--final-lr-scale", "0.04"],
        [0.001, 0.0055, 0.01, 0.01, 0.01, 0.002],  # half-way down: a factor of √0.04
    ),
}  # fmt: skip


@pytest.fixture
def make_trainer(corpus, tiny_model):
    """Gives fairseq's trainer as ``fairseq-train`` makes it, and batches."""

    def make(*more, **common):
        line = [
            str(corpus), "--task", "speech_to_text_samu", *tiny_model, "--train-subset", "train",
            "--criterion", "label_smoothed_nll", "--label-smoothing", "0.1", "--cpu", "--seed", "1",
            "--adam-betas", "(0.9, 0.98)", "--adam-eps", "1e-14", "--weight-decay", "0.1",
            "--lr", "0.01", "--clip-norm", "0.5", *more,
        ]  # fmt: skip
        cfg = convert_namespace_to_omegaconf(
            options.parse_args_and_arch(options.get_training_parser(), line)
        )
        for name, value in common.items():
            cfg.common[name] = value
        torch.manual_seed(1)
        task = tasks.setup_task(cfg.task)
        model = task.build_model(cfg.model)
        trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
        task.load_dataset("dev")
        dataset = task.dataset("dev")
        rows = range(len(dataset) // 4 * 4)
        batches = [dataset.collater([dataset[i] for i in rows[k::4]]) for k in range(4)]
        return trainer, batches

    return make


def weights(trainer):
    return {n: p.detach().clone() for n, p in trainer.get_model().named_parameters()}


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        # Attention does not depend on the bias of its keys: Adam makes steps of rounding errors.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(
                found[name], weight, msg=lambda m, n=name: f"{n}: {m}", **tolerance
            )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rates_are_those_of_adamw_with_groups_made_by_hand(make_trainer, schedule):
    """torch's AdamW: fairseq's Adam decays weights as it does."""
    settings, rates = SCHEDULES[schedule]
    trainer, batches = make_trainer(
        *NO_DROPOUT, "--optimizer", "grouped_adam",
        "--lr-scales", "encoder=0.1,decoder=0.3,encoder.layernorm=2",
        "--lr-scheduler", schedule, *settings,
    )  # fmt: skip
    model, criterion = (
        make_trainer(*NO_DROPOUT, "--optimizer", "adam")[0].get_model(),
        trainer.get_criterion(),
    )
    groups = {0.1: [], 0.3: [], 2: [], 1: []}
    for name, p in model.named_parameters():
        norm = "layer_norm" in name and "feature_extractor" not in name
        if p.requires_grad and name.startswith("encoder.wav2vec2."):
            groups[2 if norm else 0.1].append(p)
        elif p.requires_grad:
            groups[0.3 if name.startswith("decoder.") else 1].append(p)
    assert all(groups.values())
    reference = torch.optim.AdamW(
        [{"params": p, "scale": scale} for scale, p in groups.items()],
        betas=(0.9, 0.98), eps=1e-14, weight_decay=0.1,
    )  # fmt: skip
    before = weights(trainer)
    for update, rate in enumerate(rates):
        pair = [batches[update % 4], batches[(update + 1) % 4]]  # as --update-freq 2 does
        assert trainer.get_lr() == pytest.approx(rate)
        trainer.train_step(pair)
        reference.zero_grad()
        sizes = []
        for batch in pair:
            loss, size, _ = criterion(model.train(), {**batch, "ignored": False})
            loss.backward()
            sizes.append(size)
        for p in model.parameters():
            if p.grad is not None:
                p.grad *= 1 / float(sum(sizes))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in reference.param_groups:
            group["lr"] = rate * group["scale"]
        reference.step()
    expected = {name: p.detach() for name, p in model.named_parameters()}
    assert_same(weights(trainer), expected, atol=1e-5, rtol=1e-4)
    moved = [n for n in before if not torch.allclose(before[n], expected[n], atol=1e-4)]
    assert len(moved) > len(before) / 2


def test_a_resumed_run_is_the_uninterrupted_one(make_trainer, tmp_path):
    settings = ["--optimizer", "grouped_adam", "--lr-scales", "encoder=0.1", "--lr-scheduler"]
    settings += ["inverse_sqrt", "--warmup-updates", "2"]
    whole, batches = make_trainer(*settings)
    for update in range(6):
        whole.train_step([batches[update % 4]])
        if update == 2:
            position = {"epoch": 1, "version": 2, "iterations_in_epoch": 3}
            whole.consolidate_optimizer()
            whole.save_checkpoint(str(tmp_path / "half.pt"), {"train_iterator": position})
    resumed, _ = make_trainer(*settings)
    resumed.load_checkpoint(str(tmp_path / "half.pt"))
    for update in range(3, 6):
        resumed.train_step([batches[update % 4]])
    assert_same(weights(resumed), weights(whole), atol=0, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "memory_efficient_bf16"])
def test_parts_survive_reduced_precision(make_trainer, precision):
    """fp16 needs a GPU, but takes the same way through fairseq without flattened gradients."""
    trainer, batches = make_trainer(
        "--optimizer", "grouped_adam", "--lr-scales", "decoder=0.5",
        "--lr-scheduler", "fixed", **{"bf16": True, precision: True},
    )  # fmt: skip
    trainer.train_step(batches[:1])
    rates = {group["part"]: group["lr"] for group in trainer.optimizer.optimizer.param_groups}
    assert rates["outside"] == rates["encoder.others"] == 0.01
    assert rates["decoder.others"] == rates["decoder.layernorm"] == 0.005
    sizes = {
        g["part"]: sum(p.numel() for p in g["params"])
        for g in trainer.optimizer.optimizer.param_groups
    }
    model = trainer.get_model()
    assert sizes["outside"] == sum(p.numel() for p in model.encoder.adaptor.parameters())


# --- Parts that wait ------------------------------------------------------------------------------

WAITING = ["--optimizer", "adam", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "2"]
WAITING += ["--freeze-encoder-updates", "2", "--freeze-decoder-updates", "3"]
#: How many of five updates move the weights whose names begin so.
UPDATES = {"encoder.wav2vec2.": 3, "encoder.adaptor.": 5, "decoder.": 2}


def starts_of(name):
    return next(start for start in UPDATES if name.startswith(start))


def in_optimizer(trainer):
    """Names and parameters as the optimiser has them, which may be copies."""
    chosen = [(n, p) for n, p in trainer.get_model().named_parameters() if p.requires_grad]
    ours = getattr(trainer.optimizer, "fp32_params", [p for _, p in chosen])
    return {name: own for (name, _), own in zip(chosen, ours, strict=True)}


def steps_of(trainer):
    """Updates that Adam counts for every parameter, 0 where it has made none."""
    state = trainer.optimizer.optimizer.state
    return {n: state[p]["step"] if p in state else 0 for n, p in in_optimizer(trainer).items()}


def test_waiting_parts_train_as_by_an_optimizer_that_sees_them_late(make_trainer):
    trainer, batches = make_trainer(
        *NO_DROPOUT, *WAITING, "--train-decoder", "cross-attention,layernorm"
    )
    model = make_trainer(*NO_DROPOUT, "--optimizer", "adam")[0].get_model()
    criterion = trainer.get_criterion()
    reference = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.98), eps=1e-14, weight_decay=0.1
    )
    for update, rate in enumerate(SCHEDULES["inverse_sqrt"][1][:5]):
        trainer.train_step(batches[update % 4 : update % 4 + 1])
        reference.zero_grad()
        loss, size, _ = criterion(model.train(), {**batches[update % 4], "ignored": False})
        loss.backward()
        for name, p in model.named_parameters():
            chosen = not name.startswith("decoder.") or "norm" in name or "encoder_attn." in name
            if p.grad is not None:
                p.grad *= 1 / float(size)
            if not chosen or update < 5 - UPDATES[starts_of(name)]:
                p.grad = None
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        expected = {name: p.detach() for name, p in model.named_parameters()}
        assert_same(weights(trainer), expected, atol=1e-5, rtol=1e-4)
    assert steps_of(trainer) == {n: UPDATES[starts_of(n)] for n in in_optimizer(trainer)}


@pytest.mark.parametrize(
    "precision", [{}, {"bf16": True}, {"bf16": True, "memory_efficient_bf16": True}], ids=str
)
def test_waiting_parts_have_no_gradient_and_do_not_move(make_trainer, precision):
    """Neither by weight decay nor by what an optimiser keeps from gradients of zero."""
    trainer, batches = make_trainer(
        *WAITING, "--encoder-layerdrop", "0.5", "--mask-prob", "0.3", "--encoder-layer-weighting",
        **precision,
    )  # fmt: skip
    for update in range(5):
        before = weights(trainer)
        trainer.train_step(batches[:2])
        model = trainer.get_model()
        trains = {start: update >= 5 - count for start, count in UPDATES.items()}
        assert model.encoder.wav2vec2.training == trains["encoder.wav2vec2."]
        assert model.decoder.training == model.decoder.layers[0].training == trains["decoder."]
        for name, p in model.named_parameters():
            moves = trains[starts_of(name)] or "layer_weighting" in name
            assert moves or torch.equal(p, before[name]), f"{name} moved in update {update}"
            assert p.requires_grad or "feature_extractor" in name or "mask_emb" in name, name
    found = steps_of(trainer)
    for name, steps in found.items():
        assert steps == (5 if "layer_weighting" in name else UPDATES[starts_of(name)]), name


@pytest.mark.parametrize("saved", [1, 4])
def test_resuming_before_and_after_parts_began_to_train(make_trainer, tmp_path, saved):
    whole, batches = make_trainer(*WAITING, "--encoder-layerdrop", "0.5")
    for update in range(6):
        if update == saved:
            position = {"epoch": 1, "version": 2, "iterations_in_epoch": saved}
            whole.consolidate_optimizer()
            whole.save_checkpoint(str(tmp_path / "saved.pt"), {"train_iterator": position})
        whole.train_step([batches[update % 4]])
    resumed, _ = make_trainer(*WAITING, "--encoder-layerdrop", "0.5")
    resumed.load_checkpoint(str(tmp_path / "saved.pt"))
    for update in range(saved, 6):
        resumed.train_step([batches[update % 4]])
    assert_same(weights(resumed), weights(whole), atol=0, rtol=0)
    assert steps_of(resumed) == steps_of(whole)


def test_validation_leaves_a_part_that_trains_in_training(make_trainer):
    trainer, batches = make_trainer(*WAITING)
    for _ in range(3):
        trainer.train_step(batches[:1])
        trainer.valid_step(batches[0])
        assert not any(module.training for module in trainer.get_model().modules())
    trainer.train_step(batches[:1])
    assert all(module.training for module in trainer.get_model().modules())
