"""What each training task is worth: the same model and the same tokens, with one set of tasks after the other."""
