"""Self-supervised distillation: rotations and joint labels, auxiliary heads, and how a teacher is prepared."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy import SHAPE, Toy, batches, job, optimizer, train

from compressor.errors import UsageError
from compressor.methods.distill.rotations import Heads, JointTeacher, Told, joint_labels, rotated
from compressor.methods.distill.taps import Anatomy, Answer

CLASSES = 5


class Blocks(nn.Module):
    """[n, 3, 12, 12] -> logits [n, 5]; three blocks of 8 channels, then three of 16 with a stride of 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.last = (nn.Sequential(Block(i, o), Block(o, o), Block(o, o)) for i, o in ((8, 8), (8, 16)))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.first(self.stem(x))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=width // inputs, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))))


def teacher(joint: bool) -> JointTeacher:
    return JointTeacher(job("macs=50%"), joint)


def test_the_turns_of_an_image_follow_each_other() -> None:
    images = torch.arange(8.0).view(2, 1, 2, 2)
    turns = rotated(images)
    assert turns.shape == (8, 1, 2, 2)
    assert turns[0].flatten().tolist() == [0, 1, 2, 3] and turns[1].flatten().tolist() == [1, 3, 0, 2]
    assert torch.equal(turns[4], images[1])


def test_a_label_tells_class_and_turn_that_lead_back_to_the_image() -> None:
    images, targets = torch.randn(3, 3, 12, 12), torch.tensor([4, 0, 2])
    labels = joint_labels(targets)
    assert labels[:5].tolist() == [16, 17, 18, 19, 0] and len(labels.unique()) == 12
    for i, (image, label) in enumerate(zip(rotated(images), labels.tolist(), strict=True)):
        original, (kind, turn) = i // 4, divmod(label, 4)
        assert kind == targets[original] and torch.equal(image.rot90(-turn, (1, 2)), images[original])


def test_images_must_be_square() -> None:
    with pytest.raises(UsageError, match=r"must be square\. Found 3 x 12 x 8: crop"):
        rotated(torch.zeros(2, 3, 12, 8))


def test_each_head_answers_class_and_turn() -> None:
    model = Toy()
    anatomy = Anatomy.of(model, SHAPE)
    heads = Heads(model, anatomy)
    answers = heads(anatomy.ask(model, torch.randn(12, *SHAPE)).features)
    assert [answer.shape for answer in answers] == [(12, 4 * CLASSES)] * len(anatomy.taps)


def test_the_last_head_has_the_last_stage_once_more() -> None:
    model = Blocks()
    heads = Heads(model, Anatomy.of(model, SHAPE))
    assert [len(branch.more) for branch in heads.branches] == [0, 3]
    assert all(isinstance(block, Block) and block.conv1.stride == (1, 1) for block in heads.branches[1].more)


def test_a_network_without_taps_has_no_place_for_heads() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, CLASSES))
    with pytest.raises(UsageError, match="name some with --taps"):
        Heads(model, Anatomy.of(model, SHAPE))


def test_upright_are_the_images_that_are_not_turned_and_auxiliary_classifiers_too() -> None:
    main, other, hidden = torch.randn(8, CLASSES), torch.randn(8, CLASSES), torch.randn(8, 3)
    upright = Told(Answer((main, other, hidden), main, hidden, [hidden]), lambda features: []).upright
    assert torch.equal(upright.logits, main[[0, 4]]) and torch.equal(upright.features[0], hidden[[0, 4]])
    assert len(upright.output) == 2 and torch.equal(upright.output[1], other[[0, 4]])


def test_uniform_answers_cost_the_logarithm_of_the_number_of_labels() -> None:
    told = Told(Answer(None, torch.zeros(8, CLASSES), torch.zeros(8, 2), []), lambda features: [torch.zeros(8, 20)] * 3)
    assert told.joint_cross_entropy(torch.tensor([0, 3])).item() == pytest.approx(3 * math.log(20))


# The teacher's training -----------------------------------------------------------------------------------------------


def test_a_frozen_teacher_does_not_move_while_its_heads_do() -> None:
    method = teacher(joint=False)
    before = copy.deepcopy(method.state_dict())
    train(method, optimizer(method), range(1), 1)
    after = method.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("model."))
    heads = [name for name in before if name.startswith("heads.") and name.endswith("weight")]
    assert heads and all(not torch.equal(before[name], after[name]) for name in heads)
    assert all(parameter.grad is None for parameter in method.model.parameters())
    assert method.heads.training and not any(module.training for module in method.model.modules())


def test_frozen_it_has_one_term_and_together_two() -> None:
    (batch,) = batches(1)
    assert set(teacher(joint=False).loss(batch)) == {"joint_labels"}
    assert set(teacher(joint=True).loss(batch)) == {"cross_entropy", "joint_labels"}


def test_the_cross_entropy_is_that_of_images_that_are_not_turned() -> None:
    method = teacher(joint=True).eval()
    (batch,) = batches(1)
    assert torch.allclose(method.loss(batch)["cross_entropy"], F.cross_entropy(method.model(batch.inputs), batch.targets))


def test_together_heads_send_gradient_into_the_teacher() -> None:
    method = teacher(joint=True)
    (batch,) = batches(1)
    method.loss(batch)["joint_labels"].backward()
    assert method.model.stem.weight.grad.abs().sum() > 0
    before = method.model.stages[0].bn1.running_mean.clone()
    method.train().loss(batch)
    assert not torch.equal(method.model.stages[0].bn1.running_mean, before)


@pytest.mark.parametrize("joint", [False, True])
def test_what_was_trained_is_loaded_again(joint: bool) -> None:
    method, again = teacher(joint), teacher(joint)
    train(method, optimizer(method), range(1), 1)
    again.load_state_dict(method.state_dict())
    (batch,) = batches(1)
    terms = [m.eval().loss(batch) for m in (method, again)]
    assert all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])
