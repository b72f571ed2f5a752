"""A config -> the loaded model and the plan of each phase: init -> load -> labels -> optimizer.

After `state` in the flow.
"""

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Sequence

import jax

from jxfer import trees
from jxfer.data.readers import Source
from jxfer.errors import UserError
from jxfer.losses.adaptation import AdaptConfig
from jxfer.losses.classification import balanced_weights
from jxfer.train import adaptation, regularisers
from jxfer.train.config import TrainConfig
from jxfer.train.parallel import AXIS
from jxfer.train.state import Plan
from jxfer.transfer import labels as label_rules
from jxfer.transfer import strategy
from jxfer.zoo.pretrained import SOURCE_HEAD, Pretrained, create_model

_log = logging.getLogger("jxfer")


def set_up(
    config: TrainConfig,
    class_names: Sequence[str],
    total_steps: int,
    steps_per_epoch: float,
    train: Source | None = None,
) -> tuple[Pretrained, tuple[Plan, ...]]:
    """Loads the model and plans its training, phase by phase.

    Args:
      train: the training split; only class weights need it, for its labels.

    Raises:
      UserError: a strategy that transfers has no weights to start from; an option has nothing to
        act on; nothing trains, or a new parameter does not; as `create_model`, `strategy.phases`,
        `strategy.phase_steps`, `labels.label_tree`, `optimizer.schedule`,
        `classification.balanced_weights`.
      ValueError: the config asks for class weights, and there is no `train`.
    """
    scratch = config.strategy.name == "scratch"
    if config.model.arch and not config.model.weights and not scratch:
        raise UserError(
            f"{config.strategy.name} starts from pretrained weights: give --model.weights, "
            "or --strategy.name scratch for random ones"
        )
    pretrained = load(config, class_names)
    class_weights = None
    if config.loss.class_weights == "balanced":
        if train is None:
            raise ValueError("class weights need the training split")
        class_weights = balanced_weights(train.labels, class_names)
    return pretrained, make_plans(config, pretrained, total_steps, steps_per_epoch, class_weights)


def load(config: TrainConfig, class_names: Sequence[str]) -> Pretrained:
    """The model as the run has it: dtype, rematerialisation, and the heads that only train.

    Raises:
      UserError: as `create_model`; Co-Tuning has no head of the source.
    """
    pretrained = create_model(
        config.model,
        class_names,
        seed=config.seed,
        scratch=config.strategy.name == "scratch",
        sync_axis=AXIS if config.sync_bn else None,
        zoo=config.zoo,
    )
    if config.regularise.co_tuning:
        pretrained = pretrained.with_source_head()
    if domain_head := adaptation.initial_head(config.adapt, pretrained.model, config.seed):
        params = pretrained.variables["params"] | {adaptation.DOMAIN_HEAD: domain_head}
        variables = pretrained.variables | {"params": params}
        pretrained = dataclasses.replace(pretrained, variables=variables)
    model = dataclasses.replace(pretrained.model, compute_dtype=config.compute_dtype)
    if config.remat:
        model = model.rematerialised()
        if jax.default_backend() == "cpu":  # XLA drops there the barriers that hold it back
            _log.warning("--remat saves no memory on CPU, and costs a second forward pass")
    return dataclasses.replace(pretrained, model=model)


def make_plans(
    config: TrainConfig,
    pretrained: Pretrained,
    total_steps: int,
    steps_per_epoch: float,
    class_weights: tuple[float, ...] | None = None,
) -> tuple[Plan, ...]:
    """Plans the training of a model that is loaded, phase by phase; raises as `set_up`."""
    phases = strategy.phases(
        config.strategy,
        pretrained.model.stages,
        pretrained.fresh,
        with_norms=_stages(pretrained.model.norm_paths()),
        per_stage=config.optimizer.per_stage,
    )
    lengths = strategy.phase_steps(phases, config.epochs, total_steps, steps_per_epoch)
    prefix = "params/"
    loaded = frozenset(
        path.removeprefix(prefix) for path in pretrained.report.loaded if path.startswith(prefix)
    )
    source_head = pretrained.variables["params"].get(SOURCE_HEAD)
    plans = tuple(
        Plan(
            model=pretrained.model,
            preprocessing=pretrained.preprocessing,
            phase=phase,
            optimizer=config.optimizer,
            loss=config.loss,
            total_steps=steps,
            steps_per_epoch=steps_per_epoch,
            folded=pretrained.folded,
            class_weights=class_weights,
            regularise=config.regularise,
            pretrained=loaded,
            source_head=source_head["kernel"].shape if source_head else None,
            accumulate=config.accumulate,
            ema_decay=config.ema_decay,
            adapt=config.adapt if config.adapt.has_term else AdaptConfig(),
        )
        for phase, steps in zip(phases, lengths, strict=True)
    )
    _check_plans(config, pretrained, plans)
    if config.adapt.is_adversarial:
        acting = next(i for i, plan in enumerate(plans) if plan.adaptation.acts)
        ramp = sum(lengths[:acting]), sum(lengths[acting:])
        plans = tuple(dataclasses.replace(plan, ramp=ramp) for plan in plans)
    return plans


def _check_plans(config: TrainConfig, pretrained: Pretrained, plans: Sequence[Plan]) -> None:
    name, stages = config.strategy.name, pretrained.model.stages
    trained = frozenset[str]().union(*(plan.trainable for plan in plans))
    for path in pretrained.report.reinitialised:
        collection, _, leaf = path.partition("/")
        if collection == "params" and leaf not in trained:
            raise UserError(f"{name} freezes {leaf} at its new, random value; let it train")
    if not trained:
        raise UserError(f"--strategy.name {name}: every parameter is frozen; let some train")
    if config.strategy.frozen_norms == "adapt" and pretrained.folded:
        raise UserError(
            "--strategy.frozen-norms adapt: the norms of these weights are folded into the "
            "convolutions and have no statistics to adapt; leave it out"
        )
    _check_statistics(config, plans)
    micro_batch = config.batch_size // config.accumulate
    regularisers.check([plan.regularisers for plan in plans], name, micro_batch)
    adaptation.check([plan.adaptation for plan in plans], name, micro_batch)
    labels = {label for plan in plans for label in trees.flatten(plan.labels).values()}
    if config.optimizer.layer_decay is not None and labels.isdisjoint(_by_stage(stages)):
        raise UserError(
            f"--optimizer.layer-decay: no stage learns at the backbone's rate under {name}; "
            "leave it out"
        )
    for stage in config.optimizer.rates_by_stage():
        if stage not in stages:
            raise UserError(
                f"--optimizer.stage-lrs {stage}: no such stage; use {', '.join(stages)}"
            )
        if labels.isdisjoint(_by_stage([stage])):
            raise UserError(
                f"--optimizer.stage-lrs {stage}: it does not learn at the backbone's rate under "
                f"{name}; leave it out"
            )


def _check_statistics(config: TrainConfig, plans: Sequence[Plan]) -> None:
    """Averages and references are of what moves in a phase, so what moves must go on moving."""
    stopped = any(
        not before.train_layers.intersection(before.model.norm_paths()) <= after.train_layers
        for before, after in itertools.pairwise(plans)
    )
    for option, given in (
        ("--ema-decay", config.ema_decay is not None),
        ("--regularise.delta", bool(config.regularise.delta)),
    ):
        if given and stopped:
            raise UserError(
                f"{option}: under --strategy.frozen-norms adapt --strategy.trainable-norms frozen "
                "the statistics of BatchNorm move in one phase and stop in the next; leave one out"
            )


def _stages(paths: Iterable[str]) -> list[str]:
    """Those that the paths are in."""
    return sorted({path.partition("/")[0] for path in paths})


def _by_stage(stages: Sequence[str]) -> set[str]:
    return {f"{label_rules.LOW_LR}/{stage}" for stage in stages}
