# docs/training.md, "An objective of your own", with PYTHONPATH=examples.
vse-scale train --config tiny.yaml run.dir=runs/own-loss objective.kind=own_loss:Softmax objective.warmup_epochs=null objective.ramp=null objective.temperature=0.05
vse-scale plan --config tiny.yaml --gpus 2 objective.kind=own_loss:Softmax objective.warmup_epochs=null objective.ramp=null
