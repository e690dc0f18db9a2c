-- Read what moves of some jobs and of some of their items, as of one moment for each job; changes nothing.
--
-- Arguments:
--   jobs         list of {job, list of the indices of its items}
--   job_fields, item_fields  names of the fields that are read
-- Keys: job, item
-- Returns for each job {values of its fields, values of the fields of each item}; all values of one that does not exist
--   are nil
local answers = {}
for position, wanted in ipairs(args.jobs) do
  local job, items = wanted[1], {}
  for number, index in ipairs(wanted[2]) do
    items[number] = redis.call('HMGET', item_key(job .. ':' .. index), unpack(args.item_fields))
  end
  answers[position] = {redis.call('HMGET', job_key(job), unpack(args.job_fields)), items}
end
return answers
