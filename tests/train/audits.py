"""Plans of a small network, and the audit of one."""

from jxfer.data.transforms import CIFAR
from jxfer.losses.classification import LossConfig
from jxfer.models import registry
from jxfer.models.heads import HeadConfig
from jxfer.train.audit import audit
from jxfer.train.state import Plan
from jxfer.transfer.optimizer import OptimizerConfig
from jxfer.transfer.strategy import phases

PER_DEVICE = 2


def make_plans(
    strategy, optimizer=OptimizerConfig(), through="stage1", head=HeadConfig(), **fields
):
    model = registry.create("resnet20", 3, through=through, head=head)
    found = phases(strategy, model.stages, per_stage=optimizer.per_stage)
    base = {"loss": LossConfig(), "total_steps": 10, "steps_per_epoch": 5.0, "folded": False}
    return [
        Plan(model=model, preprocessing=CIFAR, phase=phase, optimizer=optimizer, **(base | fields))
        for phase in found
    ]


def run_audit(plan):
    return audit(plan, plan.model.init(0), PER_DEVICE)
