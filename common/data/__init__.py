"""Records: sources, file formats, columns, partitions, augmentation, demonstrations."""
