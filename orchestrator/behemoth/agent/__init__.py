"""The agent, one per node, and its store process.

the agent          main, link (coordinator), orders, gang, admission, member, attempt_reports, node_services, settings
its processes      child, channel; forkclient, forkserver, forkwire (workers); storelink, storewire (store process)
its books          arenas (staging memory), saves, copies, keeping, background_copy, disk_health, rendezvous
logs               output, ranklog
the store process  storeserver, store_services; writes with exchanging, restores with preparing, places, node_reads
copies there       memories, pulling, own_disk, pace, budget, opened_once
other nodes        peers
"""
