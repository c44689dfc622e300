"""Sets of problems on disk: drawing them, writing them in shards, exporting them."""
