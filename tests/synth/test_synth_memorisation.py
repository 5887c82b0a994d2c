"""The memorisation gate: copies stand out, strangers do not, and the promised rate of false alarms is kept."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.ndimage import gaussian_filter

from synth.judging import memorisation as gate
from synth.judging.copies import PATIENTS, CopyReader, Gallery, Matches
from synth.judging.evidence import Evidence, Images
from synth.judging.gathering import SEARCHING
from synth.judging.reading import pixel_digests

SIDE = 48


def people(n: int, seed: int, *, visits: int = 1) -> np.ndarray:
    """Images of n patients, uint8 (n * visits, 48, 48): half is common to all, and half of the rest to a patient's."""
    common, own = np.random.default_rng(99), np.random.default_rng(seed)
    alike = np.repeat(own.normal(size=(n, SIDE, SIDE)), visits, axis=0)
    fields = common.normal(size=(1, SIDE, SIDE)) + np.sqrt(0.5) * (alike + own.normal(size=alike.shape))
    return np.clip(128 + 250 * gaussian_filter(fields, (0, 2, 2)), 0, 255).astype(np.uint8)


def images(pixels: np.ndarray, patients: np.ndarray | None = None) -> Images:
    """Images that nobody has read; each its own patient where none is given."""
    names = np.array([str(i) for i in range(len(pixels))]) if patients is None else patients
    return Images(labels=pd.DataFrame(index=range(len(pixels))), patients=names, views=np.full(len(pixels), None),
                  readings={}, load=lambda rows: pixels[list(rows)])


def collection_of(images: Images) -> gate.Collection:
    """Images as others are searched among them."""
    pixels = images.load(range(len(images)))
    return gate.Collection(digests=pixel_digests(pixels), patients=images.patients,
                           readings=lambda: CopyReader().read(pixels))


def evidence(made: np.ndarray, train: Images, val: Images) -> Evidence:
    """The case of the images made, with all that the gate's searches find."""
    searches = gate.make_searches(collection_of(train), collection_of(val))
    found = {kind: replace(shown, readings={search.name: search.read(shown.load(range(len(shown))))
                                            for search in searches if search.name in SEARCHING[kind]})
             for kind, shown in (("made", images(made)), ("val", val))}
    return Evidence(charged_to=np.full(len(made), ""), scarce=[], train=train, **found)


@pytest.fixture(scope="module")
def train() -> Images:
    """Sixty patients with two images each, the second hardly different from the first."""
    first = people(60, seed=0)
    noise = np.random.default_rng(1).normal(scale=12, size=first.shape)
    second = np.clip(first + noise, 0, 255).astype(np.uint8)
    return images(np.concatenate([first, second]), np.tile([f"t{i}" for i in range(60)], 2))


@pytest.fixture(scope="module")
def val() -> Images:
    """Eighty other patients."""
    return images(people(80, seed=2))


def test_copies_fail_and_strangers_pass(train: Images, val: Images) -> None:
    """A copy fails although its patient's other image lies as near; its pair is named."""
    strangers, copied = people(10, seed=3), [3, 17, 70]
    case = evidence(np.concatenate([train.load(copied), strangers]), train, val)
    criterion, = gate.memorisation(case)
    passes = criterion.margin() >= 0
    assert not passes[:3].any()
    assert passes[3:].sum() >= 9  # the lowest of 80 scores is the threshold: one false alarm in 81
    pairs = gate.nearest_pairs(case)
    assert pairs["row"].tolist() == list(range(13))
    assert pairs["nearest"][:3].tolist() == copied
    np.testing.assert_allclose(pairs["score"], criterion.score)
    assert pairs["ncc"][:3].min() > 0.99 > pairs["ncc"][3:].max()


def test_a_reading_holds_what_the_search_found(train: Images) -> None:
    """Every field comes back, NaN where there are too few patients, and the row does not depend on its company."""
    few = gate.Collection(**vars(collection_of(train)) | {"patients": np.repeat(["a", "b", "c"], 40)})
    reader, made = gate.MatchReader("few", few), people(3, seed=6)
    wanted, reading = Gallery(few.readings(), few.patients).search(CopyReader().read(made)), reader.read(made)
    assert reading.shape == (3, reader.width)
    assert reading.dtype == np.float32
    assert np.isfinite(reading).all()
    found = gate.matches_of(reading)
    for name in ("rows", "ncc", "flipped", "warps"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        assert getattr(found, name).dtype == getattr(wanted, name).dtype
    assert np.isnan(found.ncc[:, 3:]).all()
    np.testing.assert_array_equal(reader.read(made[1:2]), reading[1:2])


def test_a_search_is_another_among_other_images(train: Images, val: Images) -> None:
    """Its key, by which what it found is kept, names images, their order, their patients and how many it aligns."""
    among = collection_of(train)
    fewer = gate.MatchReader("n", among, rows=np.arange(60))
    others = [gate.Collection(**vars(among) | {"patients": np.roll(among.patients, 1)}),
              gate.Collection(**vars(among) | {"digests": among.digests[::-1]}), collection_of(val)]
    keys = [gate.MatchReader("n", other).key for other in (among, *others)]
    keys += [fewer.key, gate.MatchReader("n", among, shortlist=16).key]
    assert len(set(keys)) == len(keys)
    renamed = gate.Collection(**vars(among) | {"patients": np.char.add("x", among.patients.astype(str))})
    assert gate.MatchReader("n", renamed).key == keys[0]  # what they are called changes nothing


def test_sides_are_as_many_patients_each_whatever_the_order_of_the_images(train: Images, val: Images) -> None:
    """One image of a patient, those with the smallest digests; the same people when the rows stand otherwise."""
    first, turned = collection_of(train), np.random.default_rng(0).permutation(len(train))
    other = replace(first, digests=first.digests[turned], patients=first.patients[turned])
    drawn = []
    for among in (first, other):
        near, *sides = gate.make_searches(among, collection_of(val))
        assert (near.name, near.rows) == (gate.NEAREST, None)
        assert [side.name for side in sides] == [gate.TRAIN_SIDE, gate.HELD_OUT_SIDE]
        assert [len(side.rows) for side in sides] == [60, 60]  # of 80 held-out patients
        assert len(set(among.patients[sides[0].rows])) == 60
        drawn.append(set(among.digests[sides[0].rows].tolist()))
    assert drawn[0] == drawn[1]
    many = np.repeat(np.arange(100), np.where(np.arange(100) < 50, 20, 1))  # half of the patients have twenty images
    digests = np.array([np.random.default_rng(i).bytes(32) for i in range(len(many))], dtype="V32")
    crowd = gate.Collection(digests=digests, patients=many, readings=lambda: np.empty(0))
    few = replace(crowd, digests=digests[:40], patients=np.arange(40))
    _, side, _ = gate.make_searches(crowd, few)
    assert 12 <= (many[side.rows] < 50).sum() <= 28  # 20 of 40 expected; without another hash nearly all
    (only,) = gate.make_searches(first, replace(first, digests=first.digests[:0], patients=first.patients[:0]))
    assert only.name == gate.NEAREST


def test_score_is_one_ratio() -> None:
    """(1 - best) / (1 - median of the others); null below four patients."""
    ncc = np.full((3, PATIENTS), np.nan)
    ncc[0], ncc[1, :5], ncc[2, :3] = np.linspace(0.9, 0.2, PATIENTS), [1, 0.6, 0.5, 0.4, 0.2], 0.5
    flat = np.zeros((3, PATIENTS))
    found = Matches(rows=flat.astype(int), ncc=ncc, flipped=flat.astype(bool), warps=np.zeros((3, PATIENTS, 4)))
    np.testing.assert_allclose(gate.stand_out(found), [0.1 / (1 - 0.5), 0, np.nan])


@pytest.mark.parametrize(("n", "false_alarms"), [(999, 0.01), (199, 0.005), (50, 0.1)])
def test_threshold_keeps_its_promise(n: int, false_alarms: float) -> None:
    """Over many validation sets, a further real image lies below the threshold as rarely as promised."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(2000):
        threshold, _, reason = gate.copy_threshold(rng.random(n), false_alarms=false_alarms)
        assert threshold is not None
        assert reason is None
        rates.append(threshold)  # of a uniform score, the share below it
    promised = int(false_alarms * (n + 1)) / (n + 1)
    assert abs(np.mean(rates) - promised) < 4 * np.std(rates) / np.sqrt(len(rates))
    assert promised <= false_alarms


def test_few_validation_images_say_so() -> None:
    """Under 20 set no threshold; under 1 / false_alarms the source tells the rate that can be promised."""
    threshold, _, reason = gate.copy_threshold(np.array([0.5] * 19 + [np.nan]), false_alarms=0.01)
    assert threshold is None
    assert reason == "19 validation images with a score, fewer than 20"
    threshold, source, _ = gate.copy_threshold(np.linspace(0.4, 1, 30), false_alarms=0.01)
    assert threshold == pytest.approx(0.4)
    assert "3.23% false alarms expected, not 1.00%: too few for that" in source


def test_exact_interval_is_clopper_and_pearsons() -> None:
    """Quantiles of beta distributions; the ends of 0 and of n are 0 and 1."""
    for k, n in ((3, 50), (49, 50)):
        wanted = stats.beta.ppf(0.025, k, n - k + 1), stats.beta.ppf(0.975, k + 1, n - k)
        np.testing.assert_allclose(gate.exact_interval(k, n), wanted, rtol=1e-6)
    assert gate.exact_interval(0, 300) == (0, pytest.approx(1 - 0.025 ** (1 / 300)))


def test_set_share_of_strangers_is_one_half() -> None:
    """Unequal numbers of patients and of images per patient do not move it: one image of as many patients each."""
    train = images(people(90, seed=10))
    val = images(people(40, seed=11, visits=3), np.repeat([f"v{i}" for i in range(40)], 3))
    share = gate.nearer_to_train(evidence(people(60, seed=8), train, val))
    assert share.n_per_side == 40
    assert share.low is not None
    assert share.high is not None
    assert share.low < 0.5 < share.high


def test_set_share_of_copies(train: Images, val: Images) -> None:
    """Copies raise it as far as the sample of training images can show: every second image has its source there."""
    share = gate.nearer_to_train(evidence(train.load(range(0, 120, 2)), train, val))
    assert share.if_all_copied == pytest.approx(0.75)
    assert share.low is not None
    assert share.low > 0.5


@pytest.mark.parametrize(("n_patients", "dimensions", "spread"), [(50, 8, 0.3), (60, 2, 1.0)])
def test_set_interval_covers_one_half_where_images_share_neighbours(
    n_patients: int, dimensions: int, spread: float
) -> None:
    """300 images that copy nobody, near a few patients of either side: the interval for independent images is wrong."""
    covered = []
    for draw in range(300):
        rng = np.random.default_rng(draw)
        real, made = rng.normal(size=(2 * n_patients, dimensions)), spread * rng.normal(size=(300, dimensions))
        nearest = ((made[:, None] - real) ** 2).sum(axis=-1).argmin(axis=1)
        train = nearest < n_patients
        intervals = [gate.exact_interval(int(train.sum()), 300), gate.clustered_interval(
            train, nearest=nearest, owners=np.arange(300), n_per_side=n_patients)]
        covered.append([low <= 0.5 <= high for low, high in intervals])
    independent, clustered = np.mean(covered, axis=0)
    assert independent < 0.9
    assert clustered >= 0.92


def test_set_interval_knows_images_of_one_patient() -> None:
    """Ten images of each of thirty patients, all on one side: thirty witnesses, not three hundred."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        train, nearest = np.repeat(rng.random(30) < 0.7, 10), rng.permutation(300)
        low, high = gate.clustered_interval(train, nearest=nearest, owners=np.repeat(np.arange(30), 10),
                                            n_per_side=1000)
        covered.append(low <= 0.7 <= high)
    assert np.mean(covered) >= 0.92


def test_set_interval_of_independent_images_is_the_exact_one() -> None:
    """With a neighbour for each image among very many patients, and up to the factor for degrees of freedom."""
    for k in (0, 150, 290, 300):
        train, names = np.arange(300) < k, np.arange(300)
        found = gate.clustered_interval(train, nearest=names, owners=names, n_per_side=10**7)
        np.testing.assert_allclose(found, gate.exact_interval(k, 300), atol=0.002)
    alone = gate.clustered_interval(np.ones(5), nearest=np.zeros(5), owners=np.arange(5), n_per_side=9)
    assert alone == (0, 1)


def test_thresholds_do_not_loosen_with_false_alarms(train: Images, val: Images) -> None:
    """The more false alarms are allowed, the higher the score that is wanted."""
    case = evidence(people(2, seed=9), train, val)
    thresholds = [gate.memorisation(case, false_alarms=share)[0].threshold for share in (0.01, 0.1, 0.4)]
    assert all(a is not None and b is not None and a < b for a, b in pairwise(thresholds))
