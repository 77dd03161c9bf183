# README, "Install": what is there?
vse-scale --version
vse-shards --version
vse-scale recipes
