-- Prepares a command task in Flux's job shell, so that its node needs neither Python nor a wrapper.
--
-- Does something only for jobs with the shell option `flux-endpoint`, which endpoints set where
-- this file is in use. Its keys, all optional:
--
--   task              the task's id: GC_TASK_UUID
--   sandbox           a directory, made on each node; where the task runs: GC_TASK_SANDBOX_DIR
--   ranks             how many ranks the launcher starts; default: as many as the job has
--   launcher          the launcher itself (PARSL_MPI_PREFIX); default: `flux run` with that shape
--   launcher-options  more options for it
--
-- By hand, `flux run -o flux-endpoint …` gives a script the launcher that an endpoint gives it.

local options = shell.options ["flux-endpoint"]
if not options or options == 0 then
    return
end
if type (options) ~= "table" then
    options = {}
end

-- Add up what a job asks for: nodes (if it says), slots in all, and the cores and gpus of a slot.
local function measure (resources, shape, times, inside)
    for _, resource in ipairs (resources or {}) do
        local count = type (resource.count) == "number" and resource.count or 1
        if resource.type == "node" then
            shape.nodes = (shape.nodes or 0) + count * times
            measure (resource ["with"], shape, count * times, inside)
        elseif resource.type == "slot" then
            shape.slots = shape.slots + count * times
            measure (resource ["with"], shape, 1, true)
        elseif inside and shape [resource.type] then
            shape [resource.type] = shape [resource.type] + count * times
        else
            measure (resource ["with"], shape, count * times, inside)
        end
    end
    return shape
end

local shape = measure (shell.info.jobspec.resources, {slots = 0, core = 0, gpu = 0}, 1, false)
local total = shell.info.jobspec.tasks [1].count.total
local ranks = options.ranks or total or shape.slots

local function launcher ()
    local words = {string.format ("flux run -n %d", ranks)}
    if shape.nodes then
        table.insert (words, string.format ("-N %d", shape.nodes))
    end
    table.insert (words, string.format ("-c %d", math.max (shape.core, 1)))
    if shape.gpu > 0 then
        table.insert (words, string.format ("-g %d", shape.gpu))
    end
    local more = options ["launcher-options"]
    if more and more ~= "" then
        table.insert (words, more)
    end
    return table.concat (words, " ")
end

local function make_directories (posix, path)
    local made = ""
    for part in path:gmatch ("[^/]+") do
        made = made .. "/" .. part
        posix.mkdir (made) -- fails where it is there already; chdir finds out if it isn't
    end
end

-- The shell's own directory is where it starts its tasks.
local function enter (path)
    local found, posix = pcall (require, "posix")
    if not found then
        shell.die ("flux-endpoint: a sandbox needs luaposix on this node")
    end
    make_directories (posix, path)
    local entered, reason = posix.chdir (path)
    if not entered then
        shell.die ("flux-endpoint: can't use the directory " .. path .. ": " .. tostring (reason))
    end
end

shell.setenv ("PARSL_MPI_PREFIX", options.launcher or launcher ())
shell.setenv ("PARSL_NUM_RANKS", string.format ("%d", ranks))
if shape.nodes then
    local most = math.ceil (ranks / shape.nodes)
    shell.setenv ("PARSL_NUM_NODES", string.format ("%d", shape.nodes))
    shell.setenv ("PARSL_RANKS_PER_NODE", string.format ("%d", most))
end
if options.task then
    shell.setenv ("GC_TASK_UUID", options.task)
end
if options.sandbox then
    enter (options.sandbox)
    shell.setenv ("GC_TASK_SANDBOX_DIR", options.sandbox)
else
    shell.unsetenv ("GC_TASK_SANDBOX_DIR")
end
