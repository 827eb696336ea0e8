"""Upload of a study to the Hugging Face hub as a data set: its Parquet files and a data set card."""

from __future__ import annotations

from pathlib import Path

from causal_tracer.errors import StudyError
from causal_tracer.study.store import TABLES
from causal_tracer.study.stored import StoredStudy


def push_to_hub(study: Path, repo_id: str, *, private: bool = True) -> str:
    """Upload a study's tables, manifest and report to a data set of the hub.

    Args:
        study: The study's folder.
        repo_id: The data set's id. It is created if it does not exist.
        private: Whether a new data set is private.

    Returns:
        The data set's URL.

    Raises:
        StudyError: The folder has no study, the study has not finished, or the hub refused the upload.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    card = dataset_card(StoredStudy.open(study).model)
    if lacking := [f"{name}.parquet" for name in TABLES if not (study / f"{name}.parquet").exists()]:
        raise StudyError(
            f"The study in {str(study)!r} has not finished: it has no {', '.join(lacking)}. Run it again first."
        )
    api = HfApi()
    try:
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo_id, repo_type="dataset")
        api.upload_folder(
            folder_path=str(study),
            repo_id=repo_id,
            repo_type="dataset",
            allow_patterns=["*.parquet", "manifest.json", "report.html"],
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise StudyError(
            f"The study could not be uploaded to {repo_id!r} ({error}). Check the name and your login."
        ) from error
    return f"https://huggingface.co/datasets/{repo_id}"


def dataset_card(model: str) -> str:
    """Return the data set card, with a configuration for each table, so that `load_dataset(repo_id, "cells")` works."""
    configurations = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in TABLES)
    return (
        f"---\ntags: [causal-tracing, interpretability]\nconfigs:\n{configurations}---\n\n"
        f"# Causal tracing study of {model}\n\n"
        "`cells`: one row per cell. `facts`: one row per fact, also for facts that were left out. `audit`: one row per "
        "cell that was computed twice. `manifest.json`: the settings. `report.html`: the report.\n"
    )
