-- Add what a process without a heartbeat counted.
--
-- Arguments:
--   source  name of the process
--   batch   see metrics.lua
-- Keys: metrics, batch
add_metrics(args.source, args.batch)
