"""Keys as other trainers name them, and ours of the same meaning, for suggestions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# By the last part of a dotted key, without underscores and hyphens, in lower case.
_OURS = {
    "data.global_batch": "batchsize bs trainbatchsize perdevicetrainbatchsize globalbatchsize "
    "batch microbatchsize trainmicrobatchsizepergpu",
    "engine.micro_batches": "gradientaccumulationsteps gradaccum accumfreq accumgradbatches "
    "gradientaccumulation accumulationsteps",
    "data.threads": "numworkers workers nworkers dataloadernumworkers numthreads nthreads",
    "data.path": "dataset datadir datapath traindata dataroot datafolder traindir",
    "data.split": "trainsplit",
    "data.max_caption_tokens": "maxlength maxlen maxseqlength maxtokens contextlength maxwords",
    "data.prefetch": "prefetchfactor",
    "data.cache_dir": "cachedir cachefolder",
    "optim.lr": "learningrate lr baselr maxlr initlr",
    "optim.algorithm": "optimizer optimizertype opt",
    "optim.weight_decay": "wd weightdecay l2",
    "optim.warmup_steps": "warmup numwarmupsteps lrwarmup warmupsteps warmupratio",
    "optim.clip": "gradclip maxgradnorm clipgradnorm gradientclipping gradclipnorm gradientclipval",
    "optim.drop_epochs": "lrupdate milestones lrsteps stepsize",
    "optim.drop_factor": "gamma lrdecay lrgamma",
    "train.epochs": "epochs numepochs numtrainepochs maxepochs nepochs",
    "train.max_steps": "maxsteps numsteps totalsteps iterations maxiters",
    "run.dir": "outputdir savedir logdir outdir rundir workdir checkpointdir",
    "run.seed": "seed randomseed",
    "run.checkpoint_steps": "savesteps checkpointfrequency savefrequency saveinterval",
    "run.keep_checkpoints": "savetotallimit keepcheckpoints",
    "eval.batch": "evalbatchsize perdeviceevalbatchsize valbatchsize testbatchsize",
    "eval.every_steps": "evalsteps valcheckinterval valstep evalinterval",
    "eval.split": "valsplit evalsplit validationsplit",
    "eval.patience": "earlystoppingpatience earlystopping patience",
    "engine.precision": "fp16 bf16 mixedprecision amp dtype precision autocast",
    "engine.zero_stage": "zero zerooptimization zerostage stage deepspeedstage",
    "engine.activation_checkpointing": "gradientcheckpointing gradcheckpointing "
    "checkpointactivations",
    "engine.compile": "torchcompile compile",
    "model.embed_dim": "embedsize embeddim embeddingdim dim projectiondim jointdim",
    "model.init_from": "pretrained resume resumefrom finetune checkpoint ckpt initfrom "
    "resumefromcheckpoint",
    "model.text.path": "textmodel bertpath textencoder tokenizername modelname modelnameorpath",
    "model.image.size": "imagesize imgsize resolution cropsize inputsize",
    "model.image.backbone": "visionmodel cnntype cnn imageencoder backbone visionencoder",
    "objective.margin": "margin",
    "objective.mode": "maxviolation hardnegatives hardestnegatives",
    "objective.warmup_epochs": "vsemeanwarmupepochs",
    "telemetry.prometheus_port": "prometheusport metricsport",
}
_MEANT = {word: key for key, words in _OURS.items() for word in words.split()}


def nearest_key(unknown: str, known: Iterable[str]) -> str:
    """Return the dotted key that ``unknown`` was meant for: of its meaning, or spelt nearly so."""
    return meant(unknown) or difflib.get_close_matches(unknown, list(known), n=1, cutoff=0.0)[0]


def meant(unknown: str) -> str | None:
    """Return our key of the meaning that ``unknown`` has in other trainers; None: there is none."""
    section, _, name = unknown.rpartition(".")
    name = re.sub("[-_]", "", name).lower()
    # `eval.batch_size` is theirs of `eval_batch_size`.
    return _MEANT.get(section.rpartition(".")[2] + name) or _MEANT.get(name)
