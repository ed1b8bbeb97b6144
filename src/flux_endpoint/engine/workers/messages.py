"""The protocol between the pool and its managers: messages of a kind and parts.

From the pool:

- `held?`, number of the question: which tasks does the manager hold?
- `go`, ids: tasks may start from now on; the tasks with these ids are to be dropped.
- `tasks`, a JSON object, then the tasks' buffers: their `headers`, and the `sizes` of the buffers,
  which are `frames.combined`.
- `return`, number of tasks that should be given back if they have not begun; `take`, the id of one.
- `safe`, ids with spaces between them: the ends of these tasks are on disk.
- `follow`, a JSON object: send what the task `id` prints for some `seconds`; the bytes of both
  streams that are `known`.
- `cancel`, an id; `signal`, a number and an id; `terminate`, a reason; `stop`.

To the pool:

- `hello`, a JSON object: first on each connection. No task starts before `go`.
- `held`, the question's number, a JSON object: ids of `waiting` tasks, start times of `running`
  tasks, ids of tasks that have `ended`.
- `ends`, a JSON object, then the bodies of the ends: how many `seconds` tasks take usually, and at
  `least`, the `headers` (`spool.EndHeader`), and the `sizes` of the bodies, which are
  `frames.combined`; repeated on each connection until they are `safe`.
- `returned`, ids of tasks that have not begun; `late`, ids of tasks whose `start_before` passed.
- `running`, id and start of a task that takes long.
- `output`, output of the workers, for the log; `printed`, a JSON list: a followed task, and a part
  of each stream.
- `bye`, a JSON object: the manager ends; start times of tasks that were `running`. Its other tasks
  never began.

A manager's ZeroMQ identity is a secret of its agent, the manager and later agents, which read it in
the engine's directory: nobody else can impersonate the manager. Between hosts the connection is
encrypted (CURVE), and the pool is authenticated by its key.
"""
