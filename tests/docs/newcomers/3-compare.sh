# README, "Evaluate, search, exchange": is another seed better, and is that sure?
vse-scale train --config tiny.yaml run.dir=runs/other run.seed=1
vse-scale report runs/mine runs/other --out compare.html
vse-scale report runs
