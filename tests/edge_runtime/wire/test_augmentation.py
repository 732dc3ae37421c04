import msgspec
import pytest
import samples

from edge_runtime.wire.augmentation import augmentation
from edge_runtime.wire.errors import AugmentationImpossible
from edge_runtime.wire.labels import LabelContract
from edge_runtime.wire.manifest import Array, File, Input, Manifest, Parity, Stage, Task

FILE = File(digest="0" * 64, size_bytes=1)


def array(*shape, dtype="float32"):
    return Array(shape=shape, dtype=dtype)


def manifest(image=(3, 16, 24), **targets):
    """A manifest that names tasks alone; nothing here reads the rest."""
    tasks = {
        name: target
        if isinstance(target, Task)
        else Task(name=name, target=target, prediction=msgspec.structs.replace(target, dtype="float32"))
        for name, target in targets.items()
    }
    return Manifest(
        format=2,
        name="m",
        tasks=tuple(tasks.values()),
        input=array(*image),
        representation=(array(8),),
        values=(),
        stages=(Stage(reads=("x",), writes=("z.0",), parameters=()),),
        tensors=(),
        graphs={},
        weights=FILE,
        opset=17,
        parity=Parity(max_relative_error=0.0, worst="", compared=0),
        versions={},
    )


def asked(bundle, **settings):
    return augmentation(bundle, samples.training(**settings))


def test_nothing_is_varied_unless_it_is_asked():
    assert asked(manifest(pose=array(6))) is None


def test_dense_labels_go_with_the_image_by_their_stride():
    bundle = manifest(depth=array(1, 8, 12), kind=array(dtype="int64"), segments=array(4, 6, dtype="int64"))
    found = asked(bundle, flip=0.5, crop=7)
    assert found.strides == {"depth": 2, "segments": 4}
    assert (found.step, found.crop) == (4, 4)
    assert found.vectors == frozenset()


def test_vectors_are_those_that_angles_are_measured_of():
    normals = Task(name="normals", target=array(3, 16, 24), prediction=array(3, 16, 24), metric="angular_error_deg")
    assert asked(manifest(normals=normals), flip=0.5).vectors == {"normals"}


def test_probabilities_and_classes_of_a_whole_image_stay():
    bounds = LabelContract(bounds=(0.0, 1.0))
    attributes = Task(name="attributes", target=array(9), prediction=array(9), labels=bounds)
    found = asked(manifest(attributes=attributes, kinds=array(2, dtype="int64")), crop=3)
    assert found.strides == {}
    assert found.crop == 3


@pytest.mark.parametrize("shape", [(6,), (), (17, 2), (1, 8, 8), (1, 16, 23), (1, 32, 48)])
def test_labels_of_which_nothing_is_known_are_named(shape):
    with pytest.raises(AugmentationImpossible, match="not known what they make of labels of pose, of shape"):
        asked(manifest(pose=array(*shape)), flip=0.5)
    assert asked(manifest(pose=array(*shape)), jitter=0.1).strides == {}


def test_inputs_that_are_no_images_and_distances_that_are_too_far():
    with pytest.raises(AugmentationImpossible, match=r"of images \(C, H, W\), the bundle's input is \(6, 128\)"):
        asked(manifest((6, 128), kind=array(dtype="int64")), crop=1)
    assert asked(manifest((6, 128), kind=array(dtype="int64")), jitter=0.1).jitter == 0.1
    with pytest.raises(AugmentationImpossible, match=r"8 pixels are half of the image or more, which is \(16, 24\)"):
        asked(manifest(kind=array(dtype="int64")), crop=8)


def test_augmentation_is_of_images():
    signals = msgspec.structs.replace(
        manifest(s=array(4, 4)), input=None, other_inputs={"signal": Input(shape=(6, 128), dtype="float32")}
    )
    assert asked(signals) is None
    with pytest.raises(AugmentationImpossible, match="of images, the bundle's inputs are signal: leave them out"):
        asked(signals, jitter=0.1)
