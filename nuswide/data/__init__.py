"""From files on disk to batches on the device: annotations, splits, pictures, augmentation."""
