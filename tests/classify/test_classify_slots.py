"""Which slots make up a step: phases, epochs, and the least share of slots that were not added."""

import math

import numpy as np
import pytest

from classify.slots import places_in_order, step_places
from cohort.errors import TailfillError

STEPS = 40


def places(phase, added, step, *, share=0.0, least=0.0, batch_size=8, seed=(0,), steps=STEPS):
    return step_places(phase, added, step=step, steps=steps, batch_size=batch_size, phase_2_share=share,
                       min_real_share=least, seed=seed)


def layout(n_base, n_added):
    return np.ones(n_base + n_added, dtype=np.int64), np.arange(n_base + n_added) >= n_base


def test_each_epoch_visits_each_slot_once_wherever_it_is_cut():
    places = np.array([3, 5, 8, 13, 21])
    whole = places_in_order(places, seed=(0, 1), start=0, count=20)
    for epoch in range(4):
        assert sorted(whole[5 * epoch: 5 * epoch + 5]) == list(places)
    cut = np.concatenate([places_in_order(places, seed=(0, 1), start=start, count=4) for start in range(0, 20, 4)])
    np.testing.assert_array_equal(cut, whole)


def test_phases():
    phase, none = np.array([1, 1, 2, 1, 2]), np.zeros(5, dtype=bool)

    def used(step, share):
        return set(places(phase, none, step, share=share, steps=10))

    assert used(6, 0.3) <= {0, 1, 3}
    assert used(7, 0.3) <= {2, 4}
    assert used(9, 0.0) <= {0, 1, 3}
    for step in range(10):  # an arm without a second phase does not know of it
        np.testing.assert_array_equal(*(places(phase[:2], none[:2], step, share=share, steps=10)
                                        for share in (0.3, 0.0)))
    with pytest.raises(TailfillError, match="no slots of phase 1"):
        places(phase[[2]], none[:1], 0, share=0.3)


@pytest.mark.parametrize("n_added", [0, 10, 50, 250])
@pytest.mark.parametrize("least", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_no_batch_has_less_and_one_that_has_enough_stays_as_it_is(n_added, least):
    phase, added = layout(50, n_added)
    wanted = math.ceil(round(least * 30, 6))
    for step in range(STEPS):
        plain = places(phase, added, step, batch_size=30)
        batch = places(phase, added, step, batch_size=30, least=least)
        enough = (~added[plain]).sum() >= wanted
        assert (~added[batch]).sum() == max((~added[plain]).sum(), wanted)
        assert (batch.tobytes() == plain.tobytes()) == enough
        assert (batch == plain)[~added[plain]].all()  # what is real by itself stays where it is


def test_without_the_share_batches_are_those_of_one_endless_permutation():
    phase, added = layout(50, 30)
    whole = places_in_order(np.arange(80), seed=(7, 1, 0, 1), start=0, count=8 * STEPS)
    batches = [places(phase, added, step, seed=(7, 1)) for step in range(STEPS)]
    np.testing.assert_array_equal(np.concatenate(batches), whole)


def test_five_added_slots_for_a_real_one_are_all_met_and_real_ones_more_often():
    phase, added = layout(40, 200)
    batches = np.concatenate([places(phase, added, step, least=0.5, batch_size=24, steps=400)
                              for step in range(400)])
    times = np.bincount(batches, minlength=240)
    assert (~added[batches]).mean() == pytest.approx(0.5, abs=0.01)
    assert times[:40].mean() == pytest.approx(5 * times[40:].mean(), rel=0.05)
    for part in (times[:40], times[40:]):  # drawn evenly: about as a binomial count scatters, and nobody left out
        assert part.min() > 0
        assert part.std() < 1.5 * math.sqrt(part.mean())


def test_a_step_knows_nothing_of_those_before():
    phase, added = layout(10, 90)
    forth = [places(phase, added, step, least=0.5) for step in range(STEPS)]
    back = [places(phase, added, step, least=0.5) for step in reversed(range(STEPS))]
    np.testing.assert_array_equal(forth, back[::-1])
    assert any(not np.array_equal(a, b) for a, b in zip(forth, [places(phase, added, step, least=0.5, seed=(1,))
                                                                for step in range(STEPS)], strict=True))


def test_a_phase_is_corrected_by_its_own_slots_or_not_at_all():
    """Real images after a mixed phase; a phase of added slots alone, as a classifier's re-training has it."""
    phase, added = np.repeat([1, 2, 1, 2], [10, 20, 90, 30]), np.repeat([False, False, True, True], [10, 20, 90, 30])
    for step in range(STEPS):
        batch = places(phase, added, step, share=0.5, least=0.5)
        assert set(phase[batch]) == {1 if step < STEPS / 2 else 2}
        assert (~added[batch]).sum() >= 4
    alone = phase, (phase == 2) | added
    for step in range(STEPS // 2, STEPS):
        np.testing.assert_array_equal(places(*alone, step, share=0.5, least=0.5), places(*alone, step, share=0.5))
