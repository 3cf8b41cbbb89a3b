"""Walking through a model gives what torch's own walks give."""

from torch import nn

from intandem.recorder.modules import named_modules, named_parameters


def test_parameters_are_named_as_torch_names_them():
    """Shared parameters and modules have their first name; what is missing is left out."""
    shared = nn.Linear(3, 3)
    tied = nn.Linear(3, 3, bias=False)
    tied.weight = shared.weight
    model = nn.ModuleDict({"a": nn.Sequential(tied, shared), "b": shared, "c": nn.BatchNorm1d(3)})
    model.scale = nn.Parameter(shared.bias.detach().clone())

    assert named_parameters(model) == list(model.named_parameters())
    assert named_modules(model) == list(model.named_modules())
