"""The exercise of notebook 05: a model selector that keeps the global model with the smallest loss."""

from __future__ import annotations

from checks.reply import Reply, exercise, not_yet, right


@exercise("put a model selector, made with its arguments, in answer.", "Put IntimeModelSelector(...) in answer.")
def smallest_loss(answer: object) -> Reply:
    from nvflare.apis.dxo import MetaKey  # seconds: only where it is needed
    from nvflare.app_common.widgets.intime_model_selector import IntimeModelSelector

    if not isinstance(answer, IntimeModelSelector):
        return not_yet("That is no model selector: make one, IntimeModelSelector(...) with its arguments.")
    metric, where = answer.key_metric, answer.validation_metric_name
    if metric in ("accuracy", "val_accuracy"):
        default = ", FLARE's default, which our learner does not report," if metric == "val_accuracy" else ""
        return not_yet(f"It looks at {metric!r}{default} and not at the loss: which argument names the metric?")
    if metric != "loss":
        return not_yet(f"The learner reports no {metric!r}: no best model would be kept, and no error would say so.")
    if where != MetaKey.INITIAL_METRICS:
        return not_yet(
            f"It looks for the metrics under {where!r}, where an update has none: leave validation_metric_name alone."
        )
    if not answer.negate_key_metric:
        return not_yet("It keeps the highest loss, the WORST model. Which argument turns the metric around?")
    return right('The smallest loss wins: negated, it is the highest. In a learner, metric = Metric("loss", False).')
