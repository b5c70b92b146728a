"""Which settings name Python code of others."""

from zimage_gui.config.training import TrainLoraConfig
from zimage_gui.config.trust import foreign_classes


def test_a_class_of_another_package_is_named_with_its_option():
    config = TrainLoraConfig(optimizer_type="evil.module.Opt")
    assert foreign_classes(config) == {"optimizer_type": "evil.module.Opt"}


def test_classes_of_packages_in_use_are_not_asked_about():
    assert foreign_classes(TrainLoraConfig(optimizer_type="AdamW")) == {}
    assert foreign_classes(TrainLoraConfig(optimizer_type="torch.optim.SGD")) == {}
