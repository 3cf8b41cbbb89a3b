"""Damaged schedules that the verifier lets pass are run: they give one process's gradients."""

import pytest
from test_mutants import every_family, mutants

from deep_models import DEEP
from harness import numbers_of_step, repeatable_cuts
from intandem.equality import Splitting, compare, one_process
from intandem.rules import check

NUM_PARTS = 4
"""In which the mutants are examined, so that each test is short."""

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_accepted_damage_does_no_harm(part, say):
    """Of 1,000 mutants of every family, those that pass are executed, each once."""
    originals = [order for order in every_family(4) if not order.is_forward_only]
    damaged = list(mutants(originals, "actions", seed=7))[part::NUM_PARTS]
    accepted = [mutant for mutant in damaged if not check(mutant)]
    changed = {str(mutant): mutant for mutant in accepted if mutant not in originals}
    sample = DEEP["tied_language_model"]()
    expected = one_process(*DEEP["tied_language_model"](), Splitting(4))
    for mutant in changed.values():
        sample.model.zero_grad()
        with repeatable_cuts():
            found, _ = numbers_of_step(sample, ranks=2, schedule=mutant)
        equality = compare(found, expected)
        assert equality.equal, (str(mutant), equality.worst())
    refused = len(damaged) - len(accepted)
    say(f"{refused} of {len(damaged)} damaged schedules refused, {len(changed)} of the rest run")
    assert refused > len(damaged) / 2
    assert changed
