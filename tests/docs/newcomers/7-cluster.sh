# docs/operations.md, "SLURM", without the repository: two nodes with one GPU each.
vse-scale launch-files cluster
sbatch --nodes 2 --ntasks-per-node 1 --gpus-per-node 1 --cpus-per-task 1 cluster/slurm/train.sbatch runs/cluster tiny.yaml
