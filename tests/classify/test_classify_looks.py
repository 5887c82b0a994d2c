"""Looks at test are counted: once for each way of looking, whatever is killed, repeated or already done."""

import json

import pytest
from fabricated_predictions import Fake, fabricate

import classify.compare
from classify.verdict.looks import LOOKS, looks_sentence, read_looks, record_look
from cohort.errors import TailfillError


@pytest.fixture
def fake(tmp_path) -> Fake:
    made = fabricate(tmp_path / "run")
    made.arms = ("duplicate", "synthetic")
    return made.predict()


def look(file, fingerprint: str, sha256: str = "e") -> None:
    record_look(file, fingerprint=fingerprint, sha256=sha256, fixed_beforehand=True)


def test_the_same_look_is_one_and_earlier_lines_stay(tmp_path):
    file = tmp_path / LOOKS
    assert read_looks(file) == []
    look(file, "a")
    first = file.read_bytes()
    look(file, "a")
    assert file.read_bytes() == first
    look(file, "b")
    assert file.read_bytes().startswith(first)
    assert [one["fingerprint"] for one in read_looks(file)] == ["a", "b"]


def test_words_tell_other_settings_from_other_predictions(tmp_path):
    file = tmp_path / LOOKS
    assert "not known" in looks_sentence([], "a")
    look(file, "a")
    assert "once" in looks_sentence(read_looks(file), "a")
    assert "outside" not in looks_sentence(read_looks(file), "a")
    assert "outside of this run" in looks_sentence(read_looks(file), "a", own_cohort=False)
    assert "not known" in looks_sentence(read_looks(file), "another")
    look(file, "b")
    look(file, "c", sha256="other")
    look(file, "d", sha256="other")
    text = looks_sentence(read_looks(file), "a")
    for words in ("4 times", "2 with another endpoint", "1 with other predictions"):
        assert words in text
    assert "1 with another" not in looks_sentence(read_looks(file)[:2], "a")


def test_a_broken_line_is_named(tmp_path):
    file = tmp_path / LOOKS
    look(file, "a")
    file.write_bytes(file.read_bytes() + b'{"finger')
    with pytest.raises(TailfillError, match="line 2"):
        look(file, "b")


def test_compare_counts_a_look_before_it_computes_and_not_twice_after_a_kill(fake, monkeypatch):
    file = fake.run / LOOKS

    def kill(*_, **__):
        assert len(read_looks(file)) == 1  # important: written before any number exists
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(classify.compare, "resample", kill)
        with pytest.raises(KeyboardInterrupt):
            fake.compare(monkeypatch)
    for _ in range(2):  # the second time nothing is left to do
        stamp = fake.compare(monkeypatch)
        assert [one["fingerprint"] for one in read_looks(file)] == [stamp["fingerprint"]]
    with pytest.raises(SystemExit):
        fake.compare(monkeypatch, "--compare.n_draws", "130")  # refused: nothing is read
    assert len(read_looks(file)) == 1
    (fake.run / "comparison").rename(fake.run / "first")
    fake.compare(monkeypatch, "--compare.endpoint.metric", "AUROC")
    looks = read_looks(file)
    assert len(looks) == 2
    assert looks[0]["sha256"] != looks[1]["sha256"]
    assert json.loads(file.read_text().splitlines()[0])["fixed_beforehand"] is False


def test_refused_predictions_are_no_look(fake, monkeypatch):
    broken = fake.run / "predictions" / "synthetic" / "seed_0" / "predictions.parquet"
    broken.write_bytes(broken.read_bytes() + b"x")
    with pytest.raises(SystemExit):
        fake.compare(monkeypatch)
    assert not (fake.run / LOOKS).exists()
