"""A learner that needs what it kept: its learning rate falls from round to round."""

import time

from tiny import TinyLearner


class DecayLearner(TinyLearner):
    """TinyLearner whose rounds last `pause` seconds longer, so that one can come between two of them."""

    def __init__(self, lr: float = 0.05, epochs: int = 1, seed: int = 0, pause: float = 0.0) -> None:
        super().__init__(lr, epochs, seed)
        self.pause = pause

    def local_train(self) -> object:
        first = self.lr
        self.lr = first * 0.5 ** self.state.get("rounds", 0)
        self.state["rounds"] = self.state.get("rounds", 0) + 1
        time.sleep(self.pause)
        try:
            return super().local_train()
        finally:
            self.lr = first
