"""The script's half of the learner: three methods that call dl.train. No line of the script stands here.

Where each method of FLARE's ModelLearner lives:

    method                         file
    initialize                     here (and tutorial_utils/learner.py, which it calls first)
    train, validate, get_model     tutorial_utils/learner.py; they call local_train and local_validate
    configure, abort, finalize     tutorial_utils/learner.py
    is_aborted, info, warning      nvflare: FLComponentWrapper, the parent of ModelLearner
"""

from dl.train import Net, evaluate, load_data, make_loader, pick_device, train
from tutorial_utils.learner import PTModelLearner
from tutorial_utils.metric import Metric


class CIFAR10ModelLearner(PTModelLearner):
    """dl/train.py as a federated learner.

    Args:
        data: the folder of the site folders. A site reads `data`/its-own-name and nothing else. An
            environment variable in it ("$SITE_DATA") is expanded at the site.
        epochs, lr, batch_size, momentum, seed: as in the script; epochs are local, in each round.
    """

    metric = Metric("accuracy", higher_is_better=True)

    def __init__(
        self,
        data: str,
        epochs: int = 1,
        lr: float = 0.01,
        batch_size: int = 32,
        momentum: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.data = data
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.momentum = momentum

    def initialize(self) -> None:
        super().initialize()
        self.images = load_data(self.site_folder(self.data))
        self.net = Net(self.seed).to(pick_device())

    def local_train(self) -> int:
        loader = make_loader(self.images.train, self.batch_size, self.seed_of_round())
        return train(self.net, loader, self.epochs, self.lr, self.momentum, stop=self.is_aborted)

    def local_validate(self, split: str) -> dict[str, float]:
        return evaluate(self.net, getattr(self.images, split))
