"""From folders on disk to training batches: readers, label maps, image-level labels, masks on disk, batches."""
