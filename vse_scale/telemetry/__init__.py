"""The former place of logging, records and metrics of a run, kept until 1.0."""

from vse_scale.former import hand_on

hand_on(
    __name__,
    {
        "collapse": "training.watch.collapse",
        "journal": "run.journal",
        "metrics": "training.watch.prometheus",
        "progress": "console",
        "system": "run.system",
        "tensorboard": "training.watch.tensorboard",
    },
)
