"""Super weights under training: a fine-tune that kills one is told and stopped, one that does not is left in peace."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from transformers import Trainer, TrainingArguments

from swcheck import SuperWeight, SuperWeightCallback, SuperWeightWatch, scaled
from swcheck.base.errors import OptionError
from swcheck.testing.planting import Planting, plant_super_weights, visited_experts
from tests.planted import plant
from tools.small_models import small_model

WEIGHT = SuperWeight(1, 97, 301)
PLANTED = SuperWeight(1, 5, 7, 30.0)
IDS = torch.arange(12)[None] * 5


def train(folder, tiny, *, rate, decay, wrap=lambda model: model, **options):
    """Fine-tune a copy of tiny on its own text for twelve steps; return the callback and the trainer."""
    ids = tiny.tokenizer(tiny.text[:20_000])["input_ids"]
    rows = [{"input_ids": ids[n : n + 32], "labels": ids[n : n + 32]} for n in range(0, 32 * 48, 32)]
    arguments = TrainingArguments(
        str(folder), max_steps=12, per_device_train_batch_size=4, learning_rate=rate, weight_decay=decay, report_to=[],
        logging_steps=4, save_strategy="no", use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant", max_grad_norm=1.0,
        dataloader_pin_memory=False,
    )  # fmt: skip
    model = wrap(copy.deepcopy(tiny.model))
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tiny.tokenizer)
    callback = SuperWeightCallback.attach(trainer, every=2, **options)
    trainer.train()
    return callback, trainer


@pytest.mark.slow
def test_a_gentle_fine_tune_is_left_in_peace(tmp_path, tiny):
    """No warning, all steps, and both ratios are in the trainer's log beside its loss, near x1."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        callback, trainer = train(tmp_path, tiny, rate=1e-5, decay=0.0, stop=True)
    assert trainer.state.global_step == 12
    assert [step for step, _ in callback.readings] == [0, 2, 4, 6, 8, 10, 12]
    logged = [
        entry["super_weights/contribution"]
        for entry in trainer.state.log_history
        if "super_weights/contribution" in entry
    ]
    assert len(logged) == 7
    assert logged == pytest.approx([1.0] * 7, abs=0.05)
    assert any("loss" in entry for entry in trainer.state.log_history)


@pytest.mark.slow
def test_a_fine_tune_that_kills_a_super_weight_is_stopped(tmp_path, tiny):
    """Decay that shrinks every weight is warned of once, names the weight, and ends the training before its last step."""
    with pytest.warns(UserWarning, match=r"step \d+: super weight at layer 1 \[97, 301\]: contribution x0\.") as seen:
        callback, trainer = train(tmp_path, tiny, rate=1e-2, decay=5.0, stop=True)
    assert sum("super weight at" in str(one.message) for one in seen) == 1
    assert trainer.state.global_step < 12
    assert callback.readings[-1][1].contribution < 0.75


@pytest.mark.slow
def test_adapters_are_watched_as_well(tmp_path, tiny):
    """What LoRA adds counts: the base weight stays as it is, and the reading changes."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["down_proj"], r=4, lora_alpha=256, task_type="CAUSAL_LM")
    callback, _ = train(tmp_path, tiny, rate=3e-2, decay=0.0, wrap=lambda model: peft.get_peft_model(model, config))
    assert callback.readings[0][1].contribution == pytest.approx(1.0)
    assert abs(callback.readings[-1][1].contribution - 1) > 0.02


@pytest.mark.parametrize("factor", [0.5, 1.0, -1.0, 2.0])
def test_a_reading_is_the_ratio_to_the_model_before(factor):
    """A weight that is scaled writes as many times what it wrote, through the module, and leaves the mode as it was."""
    model = plant([PLANTED]).train()
    watch = SuperWeightWatch(model, token_ids=IDS)
    with scaled(model, [PLANTED], factor):
        reading = watch.read()
    assert reading.contribution == pytest.approx(factor, rel=1e-3)
    assert reading.activation == pytest.approx(factor, rel=0.05)
    assert model.training
    assert bool(reading.faded(SuperWeightCallback().limits)) == (factor in {0.5, -1.0})


def test_a_reading_ends_at_the_layer_of_the_activation():
    """The layers after it are not run."""
    model = plant([PLANTED])
    watch = SuperWeightWatch(model, token_ids=IDS, super_weights=[PLANTED])
    calls = []
    hook = model.model.layers[4].register_forward_hook(lambda *_: calls.append(1))
    watch.read()
    hook.remove()
    assert calls == []


def test_what_cannot_be_watched_is_refused(random_llama):
    """A model without super weights, and no number of steps, are errors before the training."""
    with pytest.raises(OptionError, match="super weights to watch"):
        SuperWeightWatch(random_llama, token_ids=IDS)
    with pytest.raises(OptionError, match="every=0"):
        SuperWeightCallback(every=0)


def test_a_callback_that_never_began_reads_nothing():
    """A trainer that ends without having begun, as after an error, asks for no reading."""
    callback = SuperWeightCallback()
    callback.on_train_end(None, type("State", (), {"global_step": 0}), None)
    assert callback.readings == []


def test_a_super_weight_of_an_expert_is_watched():
    """Halved it writes half, as the watch reads it; put back it writes what it wrote."""
    model = small_model("mixtral")
    ids = torch.arange(5, 29)[None]
    (weight,) = plant_super_weights(model, [Planting(1, 3, expert=visited_experts(model, 1, ids)[0])], ids)
    watch = SuperWeightWatch(model, token_ids=ids)

    assert [one.expert for one in watch.super_weights] == [weight.expert]
    with scaled(model, [weight], 0.5):
        assert watch.read().contribution == pytest.approx(0.5)
    assert watch.read().contribution == 1
