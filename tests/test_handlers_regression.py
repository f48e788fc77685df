import numpy as np
import pytest

from servekit.errors import InvalidInput
from servekit.handlers.regression import RegressionHandler
from tests.test_spec import SPEC


def test_numbers_take_the_form_of_the_network_and_back() -> None:
    handler = RegressionHandler(SPEC)
    inputs = handler.preprocess({"value": np.array([[5.0], [6.0]])})
    assert (inputs["value"].dtype, inputs["value"].shape) == (np.float32, (2, 1))
    assert handler.postprocess({"prediction": np.float32([[9], [11]])})["prediction"].tolist() == [9, 11]
    assert handler.postprocess({"prediction": np.float32([[9, 1]])})["prediction"].tolist() == [[9, 1]]


def test_numbers_of_another_name_are_refused() -> None:
    with pytest.raises(InvalidInput, match="takes numbers called value"):
        RegressionHandler(SPEC).preprocess({"image": np.zeros((1, 1))})


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_an_answer_that_is_no_number_is_refused(number: float) -> None:
    with pytest.raises(InvalidInput, match="no finite answer"):
        RegressionHandler(SPEC).postprocess({"prediction": np.float32([[1], [number]])})
