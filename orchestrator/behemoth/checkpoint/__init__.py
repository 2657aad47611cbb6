"""The checkpoint engine: from declared arrays to a committed checkpoint, and back. Imports ports, never an adapter.

Where to find what, in the order of a save and a restore:

    what is saved      layout, model_layout, on_mesh, records, names; paths and array_keys spell the keys
    geometry           box, boxes (what a rank holds), cuts (chunks, shards), grid (each byte's place), windows
    who writes what    sharing (owners), plan (one rank's view); for object storage uploads, part_cuts, part_plan
    staging            arena, arena_format, arena_memory, staging, held, following
    writing            rank_write, writer (files), upload_writer (object storage), exchange, chunk_ends, end_writer
    commit             receipt, proof, end_proof, shard_proof, coverage, freshness, commit, commit_index, commit_record
    finding            small_objects, commit_log, opened, owner, marker, pins, signposts
    reading            reader, chunk_reader, seen_chunks; on another mesh matching, reshard, reshard_reader
    converting         conversion, fitting, changes, precision, recipe_change; scales: scale_waves, scaled_reader
    nearer sources     gathering, replicas, copying (memory of nodes), snapshot_files (a node's own disk)
    many readers       common_chunks, units, caching, counting, pacing (stores that wrap another one)
    care               verify, chunk_check, verify_store, diff, joint_boxes, gc, draining, copy_plan, filling, rehearsal
    figures            loads, forecast, over_read, scale_reads
    other formats      interop; row_ranges (experts 3 to 5)
"""
