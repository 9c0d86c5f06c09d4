"""What the bundle's configs call, and nothing else.

Wall: only workflow itself, registration, engines, runs and the commands (``__main__``) import workflow.
"""

from istn_monai._lazy import lazy

__getattr__, __all__ = lazy(
    __name__,
    {
        "checkpoints": ["Checkpoints", "load_checkpoint"],
        "epoch_lines": ["EpochLineHandler"],
        "curves": ["PairImageHandler", "TrainingCurveHandler"],
        "datasets": [
            "EpochSampler", "cached_dataset", "datalist_name", "have_masks", "pair_item", "read_pairs",
            "validation_pairs",
        ],
        "distributed": ["process_device", "rank", "start", "stop", "world_size"],
        "evaluation": ["Evaluation"],
        "host_requests": ["Replyd", "RequestPaird"],
        "host_training": ["output_folder"],
        "inferers": [
            "AutocastInferer", "default_rate", "itn_dtype", "maps_of", "one_pass", "prepare_guided", "prepare_training",
        ],
        "learn2reg": ["submission"],
        "provenance": ["config_hash", "described_representation", "described_start"],
        "recipe": [
            "AverageHandler", "ITNFirstHandler", "ValidationInferer", "WeightAverage", "contrasts",
            "default_itn_similarity", "inverse_if_symmetric", "network_from", "validation_steps", "weights_name",
        ],
        "results": ["SavePairHandler"],
        "settings": [
            "aligning", "check_settings", "find_bundle_root", "given", "guided_weights", "inference_settings",
            "network_settings", "none_or",
            "run_folder", "trained_settings",
        ],
        "start": [
            "check_evaluation", "check_inference", "check_training", "dry_run", "finish_training", "infer",
            "run_evaluation", "seed_run",
        ],
        "training": [
            "FiniteHandler", "KeepBestHandler", "KeepLastHandler", "LoadHandler", "OutputListHandler",
            "ProgressHandler", "ResumeHandler", "SeedHandler", "TermsHandler", "TrainingLoss", "ValidateHandler",
            "channels_last", "cosine_schedule", "default_similarity", "loss_of", "run_training",
            "warped_and_fixed_soi",
        ],
    },
)  # fmt: skip
