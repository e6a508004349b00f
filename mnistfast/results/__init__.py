"""What a trained model is good for: scores, predictions, other formats. Imports `report`, `runs`, `training`."""
