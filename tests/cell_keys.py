"""The keys of a cell of `result.json`."""

CELL_KEYS = {
    *("case", "experiment", "network", "law", "training", "pruning", "amount", "layers", "widths"),
    *("sparsity", "domain", "eps", "eps_source", "delta", "confidence", "trials", "budget"),
    *("close", "between", "far", "nonfinite", "p_low", "p_high", "p_value_holds"),
    *(
        "p_value_violated",
        "verdict",
        "by_theorem",
        "accuracy_change_limits",
        "mean_capped_gap_limits",
        "smallest_eps",
        "survival",
        "gap_quantile_limits",
        "certified_eps",
        "gap_lower_quantiles",
    ),
    *("gap_upper_quantiles", "sampled_gap_quantiles", "mean_squared_gap"),
    *("mean_squared_gap_standard_error", "mean_squared_gap_infinite_width"),
    *("mean_distance", "mean_distance_standard_error"),
    *("mean_distance_quantiles", "relative_distance_quantiles"),
    *("accuracy_target", "accuracy_pruned", "accuracy_change", "worst_trials", "block", "seconds"),
}
