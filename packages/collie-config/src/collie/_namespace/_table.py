"""Which distribution brings which package, and which package brings which flat name."""

LEAVES = {  # package: distribution
    "collie.config": "collie-config",
    "collie.events": "collie-config",
    "collie.interfaces": "collie-config",
    "collie.utils.monitor": "collie-config",
    "collie.adapters": "collie-models",
    "collie.data": "collie-models",
    "collie.models": "collie-models",
    "collie.module": "collie-models",
    "collie.parallel": "collie-models",
    "collie.testing": "collie-models",
    "collie.utils.dist_utils": "collie-models",
    "collie.utils.padder": "collie-models",
    "collie.utils.peft_utils": "collie-models",
    "collie.callbacks": "collie-train",
    "collie.controller.trainer": "collie-train",
    "collie.optim": "collie-train",
    "collie.controller.evaluator": "collie-eval",
    "collie.controller.server": "collie-eval",
    "collie.evaluation": "collie-eval",
    "collie.metrics": "collie-eval",
    "collie.utils.data_provider": "collie-eval",
    "collie.jobs": "collie-tui",
    "collie.tui": "collie-tui",
}

_PROVIDED = {  # package: the names that `from collie import …` finds in it
    "collie.config": ("CollieConfig", "load_config"),
    "collie.utils.monitor": (
        "BaseMonitor",
        "CPUMemoryMonitor",
        "DiskIOMonitor",
        "EvalMonitor",
        "LRMonitor",
        "LossMonitor",
        "MemoryMonitor",
        "MultiMonitors",
        "NetworkIOMonitor",
        "StepTimeMonitor",
        "TGSMonitor",
        "get_monitor",
    ),
    "collie.data": ("CollieBatchSampler", "CollieDataLoader", "CollieDatasetForTraining"),
    "collie.models": (
        "ChatGLM2ForCausalLM",
        "ChatGLMForCausalLM",
        "CollieModelForCausalLM",
        "InternLM2ForCausalLM",
        "InternLMForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Moss003MoonForCausalLM",
        "MossForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    ),
    "collie.module": ("GPTLMLoss",),
    "collie.utils.dist_utils": ("env", "set_seed", "setup_distribution"),
    "collie.utils.padder": ("ColliePadder",),
    "collie.utils.peft_utils": ("load_peft",),
    "collie.callbacks": ("Callback", "CallbackManager", "CheckpointCallback", "LoadBestModelCallback"),
    "collie.controller.trainer": ("Trainer",),
    "collie.optim": ("AdaLomo", "Adan", "Lion", "Lomo", "SophiaG"),
    "collie.controller.evaluator": (
        "Evaluator",
        "EvaluatorForClassfication",
        "EvaluatorForClassification",
        "EvaluatorForGeneration",
        "EvaluatorForPerplexity",
    ),
    "collie.controller.server": ("Server",),
    "collie.utils.data_provider": ("BaseProvider", "GradioProvider"),
    "collie.metrics": (
        "AccuracyMetric",
        "BaseMetric",
        "BleuMetric",
        "ChrfMetric",
        "ClassifyFPreRecMetric",
        "DecodeMetric",
        "ExactMatchMetric",
        "PPLMetric",
        "RougeMetric",
        "TokenF1Metric",
    ),
}


def _below(prefix: str) -> dict[str, str]:
    return {name: leaf for leaf, names in _PROVIDED.items() if leaf.startswith(prefix) for name in names}


NAMES = {  # one of the three packages that distributions share: its flat names, each with the package that brings it
    "collie": _below("collie."),
    "collie.controller": _below("collie.controller."),
    "collie.utils": _below("collie.utils."),
}
