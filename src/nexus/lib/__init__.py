"""How, without a kernel: paths, content ids, files on disk, chunking."""
