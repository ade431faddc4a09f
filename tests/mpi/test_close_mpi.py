"""A session that is closed, or forgotten, while other ranks still receive what its last step sent."""

from __future__ import annotations

import numpy as np
import pytest

import mpirt as tf


@pytest.mark.ranks(3)
@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_what_a_step_sends_arrives_whole_though_the_sender_ends_its_session_at_once(how: str, nranks: int) -> None:
    tf.cluster({"worker": nranks})
    for size in (10, 1_000, 20_000, 80_000, 1_000_000) * 4:
        with tf.Graph().as_default():
            with tf.device("/job:worker/task:0"):
                value = tf.range(size) + 1
            session = tf.Session()
            found = session.run(value)
            if how == "closed":
                session.close()
            else:
                del session
            # What was the sender's memory is used for something else.
            others = [np.full(size, -1, np.int32) for _ in range(3)]
        np.testing.assert_array_equal(found, np.arange(1, size + 1))
        assert all(other[0] == -1 for other in others)
