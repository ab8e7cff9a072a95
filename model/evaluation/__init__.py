"""The evaluation stage: agreement of results with readers, tables, figures, comparison rules. Inference needs none of it."""
