"""Which cards a pod shall have, as it is kept."""

from __future__ import annotations

import pytest

from podyd.model.gpu import CardChoice

# As they stand on instances: what podyd has once written there is read for good.
STORED = {
    "all": CardChoice(everything=True),
    "0": CardChoice(count=0),
    "2": CardChoice(count=2),
    "GPU-5aa1e9bc-0e0b-4b4b-9d61-5bb4e9b1e0b5,": CardChoice(
        named=("GPU-5aa1e9bc-0e0b-4b4b-9d61-5bb4e9b1e0b5",)
    ),
    "0000:3b:00.0,GPU-1,": CardChoice(named=("0000:3b:00.0", "GPU-1")),
}
# Until podyd wrote keys of cards.
OLDER = {"0,1": CardChoice(named=("0", "1")), "1,": CardChoice(named=("1",))}


@pytest.mark.parametrize(("text", "choice"), [*STORED.items(), *OLDER.items()])
def test_what_is_kept_is_read(text: str, choice: CardChoice) -> None:
    assert CardChoice.of_stored(text) == choice


@pytest.mark.parametrize(("text", "choice"), STORED.items())
def test_what_is_kept_is_written_as_before(text: str, choice: CardChoice) -> None:
    assert choice.stored() == text


@pytest.mark.parametrize("text", ["", ",", "x", "none", "GPU-1", "0,,1", "-1"])
def test_what_is_no_choice(text: str) -> None:
    with pytest.raises(ValueError, match=r"^" + text):
        CardChoice.of_stored(text)
